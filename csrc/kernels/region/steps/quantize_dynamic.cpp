// A float input to codes with one range a sample; only conv_dynamic may read it.
#include "kernels.h"
#include "region/steps.h"
#include "region/steps/input.h"

namespace octavo {
namespace {

void check(const Line& line, const Step& step) {
  if (step.layout == ValueLayout::kRows) line.fail("layout image or image1d");
}

void run(const RunStep& s) {
  const FloatImage source = s.input();
  const Image out = s.out();
  std::vector<QuantParams>& params = s.dynamic_params(static_cast<int>(s.index()));
  params.resize(static_cast<size_t>(source.n));
  dynamic_params(source, s.step().params.max_code, params.data());
  quantize_image_per_sample(source, params.data(), out);
  if (!s.owns_halo()) return;
  for (int64_t n = 0; n < out.n; ++n) {
    Image one = out;
    one.n = 1;
    one.data += n * out.image_pitch;
    fill_halo(one, static_cast<uint8_t>(params[static_cast<size_t>(n)].zero_point));
  }
}

}  // namespace

constinit const StepRow quantize_dynamic_step{.name = "quantize_dynamic",
                                              .keys = "in layout max",
                                              .defines_type = ValueType::kDynamicCodes,
                                              .check = check,
                                              .shape = input_shape,
                                              .run = run};

}  // namespace octavo

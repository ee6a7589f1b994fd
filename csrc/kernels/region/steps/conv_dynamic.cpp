// A convolution of codes with one range a sample, to floats.
#include "kernels.h"
#include "region/steps.h"
#include "region/steps/convolution.h"

namespace octavo {
namespace {

void write(const RunStep& s, const FloatImage& out) {
  const Step& step = s.step();
  conv_dynamic(s.x(), s.dynamic_params(step.x[0]).data(), step.geometry, s.panel<void>(), out);
}

}  // namespace

constinit const StepRow conv_dynamic_step{.name = "conv_dynamic",
                                          .keys = "x panel channels kernel stride pad dilation",
                                          .reads = Layouts::kImages,
                                          .reads_type = ValueType::kDynamicCodes,
                                          .defines_type = ValueType::kFloats,
                                          .shape = conv_shape,
                                          .halo = conv_halo,
                                          .wants_own_pixels = has_wide_kernel,
                                          .check_panel = check_weight,
                                          .constant_channels = weight_channels,
                                          .write = write};

}  // namespace octavo

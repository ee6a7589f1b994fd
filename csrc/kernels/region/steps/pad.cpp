// An image padded on its sides: with a constant, by reflection, replication or wrapping around.
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

struct Filling {
  PadMode mode = PadMode::kConstant;
  float value = 0.0f;
};

void read_mode(const Line& line, std::string_view text, Step* step) {
  constexpr const char* kModes[] = {"constant", "reflect", "replicate", "circular"};
  for (int i = 0; i < 4; ++i) {
    if (text == kModes[i]) {
      step->make_own<Filling>().mode = static_cast<PadMode>(i);
      return;
    }
  }
  line.fail("constant, reflect, replicate or circular", text);
}

constexpr Key kKeys[] = {{"mode", read_mode},
                         {"value", [](const Line& line, std::string_view text, Step* step) {
                            step->make_own<Filling>().value = static_cast<float>(line.real(text));
                          }}};

void check(const Line& line, const Step& step) {
  if (!std::isfinite(step.own_keys<Filling>().value)) line.fail("a finite value");
}

/// Whether the mode can pad an axis of `size` by `most` positions. An axis without padding fits in
/// any mode.
bool fits(PadMode mode, int64_t most, int64_t size) {
  return mode == PadMode::kConstant || most == 0 || (mode == PadMode::kReflect && most < size) ||
         (mode == PadMode::kReplicate && size > 0) || (mode == PadMode::kCircular && most <= size);
}

Shape shape(const ShapeStep& s) {
  const Step& step = s.step();
  const PadMode mode = step.own_keys<Filling>().mode;
  Shape shape = s.x();
  const int64_t most_h = std::max(step.geometry.pad_top, step.pad_bottom);
  const int64_t most_w = std::max(step.geometry.pad_left, step.pad_right);
  if (!fits(mode, most_h, shape.h) || !fits(mode, most_w, shape.w)) {
    s.fail("padding that the image can be continued by", std::to_string(most_h) + " rows and " +
                                                             std::to_string(most_w) +
                                                             " columns for " + text_of(shape));
  }
  shape.h += step.geometry.pad_top + step.pad_bottom;
  shape.w += step.geometry.pad_left + step.pad_right;
  return shape;
}

/// The code of the constant that is padded with.
void derive(const ProgramStep& s, const Shape&, const Shape&, Derived* d) {
  uint8_t code = 0;
  quantize(&s.step().own_keys<Filling>().value, 1, s.step().params, &code);
  d->own = code;
}

void run(const RunStep& s) {
  const Step& step = s.step();
  pad(s.x(), step.geometry.pad_top, step.geometry.pad_left, step.own_keys<Filling>().mode,
      s.derived().own_numbers<uint8_t>(), s.out());
}

}  // namespace

constinit const StepRow pad_step{.name = "pad",
                                 .keys = "x pad mode value",
                                 .own_keys = kKeys,
                                 .reads = Layouts::kImages,
                                 .passes_params = true,
                                 .check = check,
                                 .shape = shape,
                                 .derive = derive,
                                 .run = run};

}  // namespace octavo

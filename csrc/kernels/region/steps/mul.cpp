// The product of two values: of equal shapes, or y is one pixel a channel (a gate).
#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

Shape shape(const ShapeStep& s) {
  const Shape& x = s.x();
  const Shape& y = s.value(s.step().y);
  Shape gate = x;
  gate.h = gate.w = 1;
  const bool broadcasts = x.layout != ValueLayout::kRows && y == gate;
  if (y != x && !broadcasts) {
    s.fail("y of shape " + text_of(x) + " or with one pixel", text_of(y));
  }
  return x;
}

void derive(const ProgramStep& s, const Shape&, const Shape&, Derived* d) {
  const Step& step = s.step();
  const double s_out = step.params.scale;
  d->m =
      code_factor(static_cast<double>(s.params(step.x[0]).scale) * s.params(step.y).scale / s_out);
  d->offset = static_cast<float>(step.params.zero_point);
}

void run(const RunStep& s) {
  const Step& step = s.step();
  multiply(s.x(), s.value(step.y), s.x_params().zero_point, s.params(step.y).zero_point,
           s.derived().m, s.derived().offset, step.lo, step.hi, s.out());
}

}  // namespace

constinit const StepRow mul_step{
    .name = "mul", .keys = "x y s z max lo hi", .shape = shape, .derive = derive, .run = run};

}  // namespace octavo

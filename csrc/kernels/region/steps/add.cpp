// The sum of two values of equal shapes.
#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

Shape shape(const ShapeStep& s) {
  const Shape& y = s.value(s.step().y);
  if (y != s.x()) s.fail("y of shape " + text_of(s.x()), text_of(y));
  return s.x();
}

void derive(const ProgramStep& s, const Shape&, const Shape&, Derived* d) {
  const Step& step = s.step();
  const QuantParams a = s.params(step.x[0]), b = s.params(step.y);
  const double s_out = step.params.scale;
  const double ma = a.scale / s_out, mb = b.scale / s_out;
  d->m = code_factor(ma);
  d->m2 = code_factor(mb);
  d->offset = code_offset(step.params.zero_point - a.zero_point * ma - b.zero_point * mb);
}

void run(const RunStep& s) {
  const Derived& d = s.derived();
  add(s.x(), s.value(s.step().y), d.m, d.m2, d.offset, s.step().lo, s.step().hi, s.out());
}

}  // namespace

constinit const StepRow add_step{
    .name = "add", .keys = "x y s z max lo hi", .shape = shape, .derive = derive, .run = run};

}  // namespace octavo

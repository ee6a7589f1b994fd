// An image to rows [N, C*H*W], in the order of NCHW. A view where the image is one pixel.
#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

Shape shape(const ShapeStep& s) {
  const Shape& x = s.x();
  return s.rows({x.n}, x.c * x.h * x.w);  // checked: the product of all sizes is below 2^48
}

void place(Placement* p, int i) {
  const int x = p->step(i).x[0];
  if (p->shape(x).h == 1 && p->shape(x).w == 1) p->reshape_in_place(i, x);
}

void run(const RunStep& s) {
  if (!s.is_inside(s.step().x[0])) flatten(s.x(), s.out());
}

}  // namespace

constinit const StepRow flatten_step{.name = "flatten",
                                     .keys = "x",
                                     .reads = Layouts::kImages,
                                     .defines = Layouts::kRows,
                                     .passes_params = true,
                                     .shape = shape,
                                     .place = place,
                                     .run = run};

}  // namespace octavo

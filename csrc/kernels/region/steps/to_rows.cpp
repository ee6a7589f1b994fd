// An image [N, C, H, W] to rows [N, H, W, C], as permute(0, 2, 3, 1). A view where there is no
// halo.
#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

Shape shape(const ShapeStep& s) {
  const Shape& x = s.x();
  if (x.layout == ValueLayout::kImage1d) return s.rows({x.n, x.w}, x.c);
  return s.rows({x.n, x.h, x.w}, x.c);
}

void place(Placement* p, int i) { p->reshape_in_place(i, p->step(i).x[0]); }

void run(const RunStep& s) {
  const int x = s.step().x[0];
  if (!s.is_inside(x)) copy(s.x(), s.rows_as(static_cast<int>(s.index()), x));
}

}  // namespace

constinit const StepRow to_rows_step{.name = "to_rows",
                                     .keys = "x",
                                     .reads = Layouts::kImages,
                                     .defines = Layouts::kRows,
                                     .passes_params = true,
                                     .shape = shape,
                                     .place = place,
                                     .run = run};

}  // namespace octavo

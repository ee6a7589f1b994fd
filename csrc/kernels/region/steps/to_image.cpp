// Rows [N, H, W, C] to an image: the reverse of to_rows.
#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

Shape shape(const ShapeStep& s) {
  const Shape& x = s.x();
  if (x.lead.size() != 3) s.fail("rows [N, H, W, C]", text_of(x));
  Shape image;
  image.n = x.lead[0], image.h = x.lead[1], image.w = x.lead[2];
  image.c = x.c;
  return image;
}

void place(Placement* p, int i) { p->reshape_in_place(i, p->step(i).x[0]); }

void run(const RunStep& s) {
  const int x = s.step().x[0];
  if (!s.is_inside(x)) copy(s.rows_as(x, static_cast<int>(s.index())), s.out());
}

}  // namespace

constinit const StepRow to_image_step{.name = "to_image",
                                      .keys = "x",
                                      .reads = Layouts::kRows,
                                      .defines = Layouts::kImages,
                                      .passes_params = true,
                                      .shape = shape,
                                      .place = place,
                                      .run = run};

}  // namespace octavo

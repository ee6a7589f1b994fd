// Rows [N, C*H*W] to an image. A view where the image is one pixel.
#include <array>

#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

using ImageSize = std::array<int64_t, 3>;  // c, h, w

constexpr Key kKeys[] = {{"size", [](const Line& line, std::string_view text, Step* step) {
                            step->make_own<ImageSize>() = line.integers<3>(text, 0, kMaxNumber);
                          }}};

Shape shape(const ShapeStep& s) {
  const Shape& x = s.x();
  Shape image;
  const auto [c, h, w] = s.step().own_keys<ImageSize>();
  image.c = c, image.h = h, image.w = w;
  s.check_size(image);
  if (x.lead.size() != 1 || x.c != c * h * w) {
    s.fail("rows [N, " + std::to_string(c * h * w) + "]", text_of(x));
  }
  image.n = x.lead[0];
  return image;
}

void place(Placement* p, int i) {
  if (p->shape(i).h == 1 && p->shape(i).w == 1) p->reshape_in_place(i, p->step(i).x[0]);
}

void run(const RunStep& s) {
  if (!s.is_inside(s.step().x[0])) unflatten(s.x(), s.out());
}

}  // namespace

constinit const StepRow unflatten_step{.name = "unflatten",
                                       .keys = "x size",
                                       .own_keys = kKeys,
                                       .reads = Layouts::kRows,
                                       .defines = Layouts::kImages,
                                       .passes_params = true,
                                       .shape = shape,
                                       .place = place,
                                       .run = run};

}  // namespace octavo

// Groups of factor * factor channels become squares of pixels, in torch's order: with f the factor,
// result (y, x), channel c is x (y / f, x / f), channel (c * f + y % f) * f + x % f.
#include <algorithm>

#include "image_rows.h"
#include "region/steps.h"

namespace octavo {
namespace {

struct Shuffle {
  int64_t factor = 1;
};

/// Squares of factors stay far from overflow.
constexpr int64_t kMaxFactor = 1 << 15;

constexpr Key kKeys[] = {{"factor", [](const Line& line, std::string_view text, Step* step) {
                            step->make_own<Shuffle>().factor = line.integer(text, 1, kMaxFactor);
                          }}};

Shape shape(const ShapeStep& s) {
  const int64_t factor = s.step().own_keys<Shuffle>().factor;
  Shape shape = s.x();
  if (shape.layout != ValueLayout::kImage) s.fail("an image [N, C, H, W]", text_of(shape));
  if (shape.c % (factor * factor) != 0) {
    s.fail("channels in groups of " + std::to_string(factor * factor), std::to_string(shape.c));
  }
  shape.c /= factor * factor;
  shape.h *= factor;
  shape.w *= factor;
  return shape;
}

// 2^19 codes at 0.08 ns are 40 us; single codes take four times as long.
constexpr int64_t kGrain = int64_t{1} << 17;

void run(const RunStep& s) {
  const int64_t factor = s.step().own_keys<Shuffle>().factor, group = factor * factor;
  const Image x = s.x(), out = s.out();
  for_each_run(out.n, out.h, out.w, Joined::kRow, kGrain / std::max<int64_t>(out.c, 1),
               [&](int64_t n, int64_t row, int64_t column, int64_t pixels) {
                 const uint8_t* rows = pixel(x, n, row / factor, 0) + row % factor * factor;
                 uint8_t* to = pixel(out, n, row, column);
                 for (int64_t i = column; i < column + pixels; ++i, to += out.pixel_pitch) {
                   const uint8_t* from = rows + i / factor * x.pixel_pitch + i % factor;
                   for (int64_t c = 0; c < out.c; ++c) to[c] = from[c * group];
                 }
               });
}

}  // namespace

constinit const StepRow pixel_shuffle_step{.name = "pixel_shuffle",
                                           .keys = "x factor",
                                           .own_keys = kKeys,
                                           .reads = Layouts::kImages,
                                           .passes_params = true,
                                           .shape = shape,
                                           .run = run};

}  // namespace octavo

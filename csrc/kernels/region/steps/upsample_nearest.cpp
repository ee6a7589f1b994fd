// Nearest upsampling to a size or by a factor, by torch's rule.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

/// Factors of an axis whose size is not given.
struct Factors {
  double h = 0.0, w = 0.0;
};
/// Source of each row and column.
struct Sources {
  std::vector<int64_t> rows, columns;
};

constexpr Key kKeys[] = {{"scale", [](const Line& line, std::string_view text, Step* step) {
                            auto& factors = step->make_own<Factors>();
                            std::string_view rest = text;
                            factors.h = line.real(take(&rest, ','));
                            if (rest.data() == nullptr) line.fail("2 numbers", text);
                            factors.w = line.real(rest);
                            for (const double f : {factors.h, factors.w}) {
                              if (!(f >= 0.0 && f <= 65536.0))
                                line.fail("numbers in 0..65536", text);
                            }
                          }}};

int64_t upsampled(const ShapeStep& s, int64_t size, int64_t wanted, double factor) {
  const int64_t out =
      wanted > 0 ? wanted : static_cast<int64_t>(static_cast<double>(size) * factor);
  if (out < 1 || size < 1) {
    s.fail("upsampling to at least one pixel from at least one",
           std::to_string(size) + " to " + std::to_string(out));
  }
  return out;
}

Shape shape(const ShapeStep& s) {
  const auto& factors = s.step().own_keys<Factors>();
  Shape shape = s.x();
  shape.h = upsampled(s, shape.h, s.step().size[0], factors.h);
  shape.w = upsampled(s, shape.w, s.step().size[1], factors.w);
  return shape;
}

/// For small images torch uses a kernel that repeats every pixel once or twice where the sizes are
/// equal or double, whatever the factor. One-dimensional values and larger images follow the
/// factor. (In torch all channels_last images count as small; here the memory order does not change
/// results.)
constexpr int64_t kSmall = 128;  // height and width of the result together

bool is_small(const Shape& value) {
  return value.layout == ValueLayout::kImage && value.h + value.w <= kSmall;
}

/// Source of each output index along one axis. The arithmetic is torch's: float32, from the
/// quotient of the sizes if a size was asked for, else from the inverse of the factor.
std::vector<int64_t> nearest_index(int64_t in, int64_t out, int64_t wanted, double factor,
                                   bool small) {
  const float ratio = wanted > 0 ? static_cast<float>(in) / static_cast<float>(out)
                                 : static_cast<float>(1.0 / factor);
  std::vector<int64_t> index(static_cast<size_t>(out));
  for (int64_t i = 0; i < out; ++i) {
    const auto source = static_cast<int64_t>(std::floor(static_cast<float>(i) * ratio));
    index[static_cast<size_t>(i)] = small && out == in       ? i
                                    : small && out == 2 * in ? i / 2
                                                             : std::min(source, in - 1);
  }
  return index;
}

void derive(const ProgramStep& s, const Shape& x, const Shape& value, Derived* d) {
  const auto& factors = s.step().own_keys<Factors>();
  const bool small = is_small(value);
  d->own = Sources{nearest_index(x.h, value.h, s.step().size[0], factors.h, small),
                   nearest_index(x.w, value.w, s.step().size[1], factors.w, small)};
}

void run(const RunStep& s) {
  const auto& sources = s.derived().own_numbers<Sources>();
  upsample_nearest(s.x(), sources.rows.data(), sources.columns.data(), s.out());
}

}  // namespace

constinit const StepRow upsample_nearest_step{.name = "upsample_nearest",
                                              .keys = "x size scale",
                                              .own_keys = kKeys,
                                              .reads = Layouts::kImages,
                                              .passes_params = true,
                                              .shape = shape,
                                              .derive = derive,
                                              .run = run};

}  // namespace octavo

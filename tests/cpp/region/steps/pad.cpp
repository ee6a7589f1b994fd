// Reference of pad.
#include <string>

#include "region/reference.h"

namespace octavo {
namespace {

/// Position in the image that position i beyond it repeats; -1: the constant.
int64_t source(int64_t i, int64_t size, const std::string& mode) {
  if (i >= 0 && i < size) return i;
  if (mode == "constant") return -1;
  if (mode == "replicate") return i < 0 ? 0 : size - 1;
  if (mode == "circular") return (i + size) % size;
  return i < 0 ? -i : 2 * (size - 1) - i;
}

const Reference kPad("pad", [](const ReferenceStep& s) {
  const std::string mode = s.text("mode");
  const auto value = static_cast<float>(s.numbers("value")[0]);
  const ConvGeometry& g = s.step().geometry;
  const ReferenceValue& in = s.x();
  s.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    const int64_t row = source(y - g.pad_top, in.h, mode);
    const int64_t column = source(x - g.pad_left, in.w, mode);
    return row < 0 || column < 0 ? quantized(value, s.step().params)
                                 : in.q[in.at(n, row, column, c)];
  });
});

}  // namespace
}  // namespace octavo

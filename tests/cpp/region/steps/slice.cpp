// Reference of slice.
#include "region/reference.h"

namespace octavo {
namespace {

const Reference kSlice("slice", [](const ReferenceStep& s) {
  const std::vector<double> h = s.numbers("h"), w = s.numbers("w");  // start, stop, step
  s.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    const auto row = static_cast<int64_t>(h[0]) + y * static_cast<int64_t>(h[2]);
    const auto column = static_cast<int64_t>(w[0]) + x * static_cast<int64_t>(w[2]);
    return s.x().q[s.x().at(n, row, column, c)];
  });
});

}  // namespace
}  // namespace octavo

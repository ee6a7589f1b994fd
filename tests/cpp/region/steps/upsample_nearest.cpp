// Reference of upsample_nearest.
#include <algorithm>

#include "region/reference.h"

namespace octavo {
namespace {

int64_t source(int64_t at, int64_t from, int64_t to, double size, double factor) {
  const float ratio = size > 0 ? static_cast<float>(from) / static_cast<float>(to)
                               : static_cast<float>(1.0 / factor);
  return std::min(from - 1, static_cast<int64_t>(static_cast<float>(at) * ratio));
}

const Reference kUpsampleNearest("upsample_nearest", [](const ReferenceStep& s) {
  const std::vector<double> size = s.numbers("size"), factor = s.numbers("scale");
  const ReferenceValue& in = s.x();
  const ReferenceValue& out = s.out();
  s.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    return in.q[in.at(n, source(y, in.h, out.h, size[0], factor[0]),
                      source(x, in.w, out.w, size[1], factor[1]), c)];
  });
});

}  // namespace
}  // namespace octavo

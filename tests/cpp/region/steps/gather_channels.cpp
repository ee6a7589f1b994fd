// Reference of gather_channels.
#include "region/reference.h"

namespace octavo {
namespace {

const Reference kGatherChannels("gather_channels", [](const ReferenceStep& s) {
  const auto* index = s.panel<int32_t>();
  s.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    return index[c] < 0 ? s.step().params.zero_point : s.x().q[s.x().at(n, y, x, index[c])];
  });
});

}  // namespace
}  // namespace octavo

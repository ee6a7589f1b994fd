// Reference of avg_pool.
#include "region/steps/reference_pool.h"

namespace octavo {
namespace {

const Reference kAvgPool("avg_pool", [](const ReferenceStep& s) {
  const auto fixed = static_cast<int64_t>(s.numbers("divisor")[0]);
  const bool include_pad = s.numbers("include_pad")[0] != 0;
  each_window(s, [&](size_t at, const PoolWindow& window) {
    const int64_t divisor = fixed > 0 ? fixed : include_pad ? window.padded : window.inside;
    s.out().q[at] = averaged(s, window, divisor);
  });
});

}  // namespace
}  // namespace octavo

// Reference of adaptive_max_pool.
#include "region/steps/reference_pool.h"

namespace octavo {
namespace {

const Reference kAdaptiveMaxPool("adaptive_max_pool", [](const ReferenceStep& s) {
  each_adaptive_window(s, [&](size_t at, const PoolWindow& window) {
    s.out().q[at] = static_cast<int32_t>(window.most);
  });
});

}  // namespace
}  // namespace octavo

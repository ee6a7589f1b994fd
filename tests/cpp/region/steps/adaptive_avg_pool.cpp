// Reference of adaptive_avg_pool.
#include "region/steps/reference_pool.h"

namespace octavo {
namespace {

const Reference kAdaptiveAvgPool("adaptive_avg_pool", [](const ReferenceStep& s) {
  each_adaptive_window(s, [&](size_t at, const PoolWindow& window) {
    s.out().q[at] = averaged(s, window, window.inside);
  });
});

}  // namespace
}  // namespace octavo

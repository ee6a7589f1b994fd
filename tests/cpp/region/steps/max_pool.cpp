// Reference of max_pool.
#include "region/steps/reference_pool.h"

namespace octavo {
namespace {

const Reference kMaxPool("max_pool", [](const ReferenceStep& s) {
  each_window(s, [&](size_t at, const PoolWindow& window) {
    s.out().q[at] = static_cast<int32_t>(window.most);
  });
});

}  // namespace
}  // namespace octavo

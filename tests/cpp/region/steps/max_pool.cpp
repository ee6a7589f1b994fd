// Reference and tests of max_pool.
#include "region/region_test.h"
#include "region/steps/reference_pool.h"

namespace octavo {
namespace {

const Reference kMaxPool("max_pool", [](const ReferenceStep& s) {
  each_window(s, [&](size_t at, const PoolWindow& window) {
    s.out().q[at] = static_cast<int32_t>(window.most);
  });
});

class MaxPoolStep : public RegionTest {};
OCTAVO_FOR_EVERY_ISA(MaxPoolStep);

TEST_P(MaxPoolStep, WindowsReachBeyondSmallMapsInCeilMode) {
  for (const int64_t side : {1, 2, 3, 5}) {
    RegionBuilder b(12);
    const int q = b.step("quantize in=0 layout=image" + b.params());
    b.out(b.step("max_pool" + x(q) + " kernel=2,3 stride=3,3 pad=0,1,0,1 dilation=2,1 ceil=1"));
    const Input in(b, {2, 5, side, side}, Order::kContiguous);
    expect_as_reference(b, {in.view});
  }
}

}  // namespace
}  // namespace octavo

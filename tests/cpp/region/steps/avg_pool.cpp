// Reference and tests of avg_pool.
#include "region/region_test.h"
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

class AvgPoolStep : public RegionTest {};
OCTAVO_FOR_EVERY_ISA(AvgPoolStep);

TEST_P(AvgPoolStep, WindowsReachBeyondSmallMapsInCeilMode) {
  for (const int64_t side : {1, 2, 3, 5}) {
    for (const char* include_pad : {"0", "1"}) {
      RegionBuilder b(13);
      const int q = b.step("quantize in=0 layout=image" + b.params());
      b.out(b.step("avg_pool" + x(q) + " kernel=2,3 stride=2,3 pad=0,1,0,1 ceil=1 include_pad=" +
                   include_pad + " divisor=0" + b.params()));
      const Input in(b, {2, 5, side, side}, Order::kContiguous);
      expect_as_reference(b, {in.view});
    }
  }
}

}  // namespace
}  // namespace octavo

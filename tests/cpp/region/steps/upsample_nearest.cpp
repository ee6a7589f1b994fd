// Reference and tests of upsample_nearest.
#include <algorithm>

#include "region/reference.h"
#include "region/region_test.h"

namespace octavo {
namespace {

int64_t source(int64_t at, int64_t from, int64_t to, double size, double factor, bool small) {
  if (small && to == from) return at;
  if (small && to == 2 * from) return at / 2;
  const float ratio = size > 0 ? static_cast<float>(from) / static_cast<float>(to)
                               : static_cast<float>(1.0 / factor);
  return std::min(from - 1, static_cast<int64_t>(static_cast<float>(at) * ratio));
}

const Reference kUpsampleNearest("upsample_nearest", [](const ReferenceStep& s) {
  const std::vector<double> size = s.numbers("size"), factor = s.numbers("scale");
  const ReferenceValue& in = s.x();
  const ReferenceValue& out = s.out();
  const bool small = s.step().layout == ValueLayout::kImage && out.h + out.w <= 128;
  s.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    return in.q[in.at(n, source(y, in.h, out.h, size[0], factor[0], small),
                      source(x, in.w, out.w, size[1], factor[1], small), c)];
  });
});

class UpsampleNearestStep : public RegionTest {};
OCTAVO_FOR_EVERY_ISA(UpsampleNearestStep);

TEST_P(UpsampleNearestStep, FollowsFactorsAndSizes) {
  RegionBuilder b(11);
  const int image = b.step("quantize in=0 layout=image" + b.params());
  const int line = b.step("quantize in=1 layout=image1d" + b.params());
  for (const double factor : {0.7, 1.05, 1.3, 2.0, 2.05, 2.1}) {
    const std::string scale = " scale=" + hex(factor) + "," + hex(factor);
    b.step("upsample_nearest" + x(image) + " size=0,0" + scale);
    b.step("upsample_nearest" + x(image) + " size=0,30" + scale);
    b.step("upsample_nearest" + x(line) + " size=1,0" + scale);
  }
  for (int id = line + 1; id < b.next; ++id) b.out(id);
  for (const int64_t h : {5, 9, 130}) {
    const Input first(b, {2, 3, h, 9}, Order::kContiguous), second(b, {2, 4, h}, Order::kSliced);
    expect_as_reference(b, {first.view, second.view});
  }
}

}  // namespace
}  // namespace octavo

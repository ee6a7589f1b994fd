// Reference and tests of pixel_shuffle.
#include "region/reference.h"
#include "region/region_test.h"

namespace octavo {
namespace {

const Reference kPixelShuffle("pixel_shuffle", [](const ReferenceStep& s) {
  const auto r = static_cast<int64_t>(s.numbers("factor")[0]);
  s.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    return s.x().q[s.x().at(n, y / r, x / r, (c * r + y % r) * r + x % r)];
  });
});

class PixelShuffleStep : public RegionTest {};
OCTAVO_FOR_EVERY_ISA(PixelShuffleStep);

/// Reads a range of another value's channels; is written beside a halo, and into a concat.
TEST_P(PixelShuffleStep, EveryLayout) {
  for (const int64_t factor : {1, 2, 3, 4}) {
    for (const int64_t channels : {1, 3, 17}) {
      RegionBuilder b(static_cast<uint64_t>(factor * 100 + channels));
      const std::string r = " factor=" + std::to_string(factor);
      const int64_t many = channels * factor * factor;
      const int q = b.step("quantize in=0 layout=image" + b.params());
      std::vector<int32_t> range;
      for (int64_t c = 0; c < many; ++c) range.push_back(static_cast<int32_t>(c + 2));
      const int view = b.step("gather_channels" + x(q) + panel(b.channels(range)));
      const int padded = b.step("pixel_shuffle" + x(view) + r);
      const int conv = b.step("conv" + x(padded) + panel(b.weight(5, channels, 1, 3, 3)) +
                              " channels=5 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1" +
                              b.params() + b.clamp());
      const std::string shared = b.params();
      const int table = b.step("table" + x(view) + panel(b.byte_table(256)) + shared);
      const int inside = b.step("pixel_shuffle" + x(table) + r);
      const int whole = b.step("concat x=" + std::to_string(conv) + "," + std::to_string(inside) +
                               "," + std::to_string(conv) + shared);
      b.out(conv), b.out(whole);
      for (const Order order : {Order::kContiguous, Order::kChannelsLast, Order::kSliced}) {
        const Input in(b, {3, many + 4, 4, 5}, order);
        expect_as_reference(b, {in.view});
      }
    }
  }
}

TEST_P(PixelShuffleStep, RefusesWhatTorchRefuses) {
  const auto shapes = [](const std::string& layout, const std::vector<int64_t>& sizes) {
    return region_output_shapes(
        "octavo.region 1\n0 = quantize in=0 layout=" + layout +
            " s=0x1p-6 z=0 max=255\n1 = pixel_shuffle x=0 factor=2\nout 1\n",
        {sizes}, {});
  };
  EXPECT_EQ(shapes("image", {2, 12, 5, 0})[0], (std::vector<int64_t>{2, 3, 10, 0}));
  EXPECT_THROW(shapes("image", {2, 10, 5, 3}), RegionError);
  EXPECT_THROW(shapes("image1d", {2, 12, 5}), RegionError);
}

}  // namespace
}  // namespace octavo

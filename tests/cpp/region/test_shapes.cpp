// Sizes of what steps define, as torch gives them.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "region/shapes.h"

namespace octavo {
namespace {

TEST(RegionShapes, FollowTorch) {
  const auto shape = [](const std::string& step, const std::vector<int64_t>& sizes) {
    return region_output_shapes(
        "octavo.region 1\n0 = quantize in=0 layout=image s=0x1p-6 z=0 max=255\n" + step +
            "\nout 1\n",
        {sizes}, std::vector<int64_t>(step.find("panel") != std::string::npos ? 1 : 0, 5))[0];
  };
  using Sizes = std::vector<int64_t>;
  EXPECT_EQ(
      shape("1 = max_pool x=0 kernel=3,3 stride=2,2 pad=0,0,0,0 dilation=1,1 ceil=1", {1, 2, 6, 8}),
      (Sizes{1, 2, 3, 4}));
  EXPECT_EQ(
      shape("1 = max_pool x=0 kernel=2,2 stride=2,2 pad=1,1,1,1 dilation=1,1 ceil=1", {1, 2, 5, 4}),
      (Sizes{1, 2, 3, 3}));
  const std::string ceil = "1 = max_pool x=0 kernel=2,2 stride=2,2 pad=0,0,0,0 dilation=1,1 ceil=1";
  EXPECT_EQ(shape(ceil, {1, 2, 1, 1}), (Sizes{1, 2, 1, 1}));
  EXPECT_EQ(shape(ceil, {1, 2, 1, 5}), (Sizes{1, 2, 1, 3}));
  EXPECT_THROW(shape(ceil, {1, 2, 0, 5}), RegionError);
  // A reach of four rows over two: torch finds no window either.
  EXPECT_THROW(
      shape("1 = max_pool x=0 kernel=2,1 stride=2,1 pad=0,0,0,0 dilation=3,1 ceil=1", {1, 2, 2, 8}),
      RegionError);
  EXPECT_EQ(shape("1 = slice x=0 h=1,-1,2 w=0,99,3", {1, 2, 6, 8}), (Sizes{1, 2, 3, 3}));
  EXPECT_EQ(shape("1 = upsample_nearest x=0 size=0,0 scale=0x1.8p0,0x1p-1", {1, 2, 5, 8}),
            (Sizes{1, 2, 7, 4}));
  EXPECT_EQ(
      shape("1 = upsample_nearest x=0 size=0,0 scale=0x1.6666666666666p-1,0x1.8cccccccccccdp+0",
            {1, 2, 10, 20}),
      (Sizes{1, 2, 7, 31}));  // 0.7 and 1.55
  EXPECT_EQ(shape("1 = flatten x=0", {3, 2, 5, 4}), (Sizes{3, 40}));
  EXPECT_EQ(shape("1 = to_rows x=0", {3, 2, 5, 4}), (Sizes{3, 5, 4, 2}));
  EXPECT_EQ(shape("1 = gather_channels x=0 panel=0", {3, 2, 5, 4}), (Sizes{3, 5, 5, 4}));
}

}  // namespace
}  // namespace octavo

// What the arena of a region promises: parts of a concat in place, views, halos, memory used again.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "region/arena.h"

namespace octavo {
namespace {

Arena arena_of(const std::string& text, const std::vector<int64_t>& sizes,
               std::vector<int64_t> panel_facts = {}) {
  auto program = parse_program(text);
  panel_facts.resize(program->steps.size(), -1);
  return make_arena(program, {sizes},
                    std::vector<int64_t>(static_cast<size_t>(program->panel_count), 4), panel_facts,
                    sizes[0], true);
}

TEST(RegionArena, PartsOfAConcatLieInside) {
  const Arena arena = arena_of(
      "octavo.region 1\n"
      "0 = quantize in=0 layout=image s=0x1p-6 z=0 max=255\n"
      "1 = conv x=0 panel=0 channels=8 kernel=1,1 stride=1,1 pad=0,0,0,0 dilation=1,1 s=0x1p-5 z=7 "
      "max=255 lo=0 hi=255\n"
      "2 = conv x=0 panel=0 channels=4 kernel=1,1 stride=1,1 pad=0,0,0,0 dilation=1,1 s=0x1p-5 z=7 "
      "max=255 lo=0 hi=255\n"
      "3 = conv x=0 panel=0 channels=4 kernel=1,1 stride=1,1 pad=0,0,0,0 dilation=1,1 s=0x1p-5 z=8 "
      "max=255 lo=0 hi=255\n"
      "4 = concat x=1,2,3 s=0x1p-5 z=7 max=255\n"
      "5 = conv x=4 panel=0 channels=4 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1 s=0x1p-5 z=7 "
      "max=255 lo=0 hi=255\n"
      "out 5\n",
      {2, 3, 6, 5});
  EXPECT_TRUE(arena.in_place(1, 4));
  EXPECT_TRUE(arena.in_place(2, 4));
  EXPECT_FALSE(arena.in_place(3, 4));  // other parameters
  EXPECT_EQ(arena.values[2].offset - arena.values[1].offset, 8);
  EXPECT_EQ(arena.values[1].view.pixel_pitch, 16);
  EXPECT_EQ(arena.values[1].view.halo, 1);
  EXPECT_TRUE(arena.values[4].owns_halo);
  EXPECT_FALSE(arena.values[1].owns_halo);
  EXPECT_EQ(arena.values[4].view.row_pitch, (5 + 1) * 16);
  EXPECT_EQ(arena.values[4].view.image_pitch, (6 + 2) * (5 + 1) * 16);
}

TEST(RegionArena, HaloIsWhatConvolutionsRead) {
  const auto halo = [](const std::string& conv) {
    return arena_of(
               "octavo.region 1\n0 = quantize in=0 layout=image s=0x1p-6 z=0 max=255\n1 = conv x=0 "
               "panel=0 channels=8 " +
                   conv + " s=0x1p-5 z=7 max=255 lo=0 hi=255\nout 1\n",
               {1, 3, 8, 8})
        .values[0]
        .view.halo;
  };
  EXPECT_EQ(halo("kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1"), 1);
  EXPECT_EQ(halo("kernel=1,1 stride=1,1 pad=0,0,0,0 dilation=1,1"), 0);
  EXPECT_EQ(halo("kernel=3,3 stride=1,1 pad=2,2,2,2 dilation=2,2"), 2);
  EXPECT_EQ(halo("kernel=2,2 stride=1,1 pad=0,0,1,1 dilation=1,1"), 1);
  // The last padded column is never reached with this stride.
  EXPECT_EQ(halo("kernel=2,2 stride=2,2 pad=0,0,1,1 dilation=1,1"), 0);
}

TEST(RegionArena, ReshapesAndRangesAreViews) {
  const Arena arena = arena_of(
      "octavo.region 1\n"
      "0 = quantize in=0 layout=image s=0x1p-6 z=0 max=255\n"
      "1 = gather_channels x=0 panel=0\n"
      "2 = add x=1 y=1 s=0x1p-6 z=0 max=255 lo=0 hi=255\n"
      "3 = adaptive_avg_pool x=2 size=1,1 s=0x1p-6 z=0 max=255\n"
      "4 = flatten x=3\n"
      "5 = to_rows x=2\n"
      "6 = to_image x=5\n"
      "out 4\nout 6\n",
      {2, 6, 3, 3}, {-1, 2});
  EXPECT_EQ(arena.values[1].root, 0);
  EXPECT_EQ(arena.values[1].offset - arena.values[0].offset, 2);
  EXPECT_EQ(arena.values[1].view.pixel_pitch, 6);
  EXPECT_EQ(arena.values[4].root, 3);
  EXPECT_EQ(arena.values[5].root, 2);
  EXPECT_EQ(arena.values[6].root, 2);
}

TEST(RegionArena, MemoryIsReused) {
  std::string text = "octavo.region 1\n0 = quantize in=0 layout=image s=0x1p-6 z=0 max=255\n";
  for (int i = 1; i < 50; ++i) {
    text += std::to_string(i) + " = table x=" + std::to_string(i - 1) +
            " panel=0 s=0x1p-6 z=0 max=255\n";
  }
  const Arena arena = arena_of(text + "out 49\n", {1, 64, 16, 16});
  EXPECT_EQ(arena.bytes, 2 * 64 * 16 * 16);
}

}  // namespace
}  // namespace octavo

// Tests layout.cpp on every ISA: each code lands where kernels.h says, and nothing else is written.
#include <gtest/gtest.h>

#include <algorithm>

#include "element_test.h"

namespace octavo {
namespace {

using testing::Codes;
using testing::for_each_thread_count;
using testing::Guarded;
using testing::Random;

class Layout : public testing::IsaTest {};
OCTAVO_FOR_EVERY_ISA(Layout);

struct Shape {
  int64_t n, h, w, c;
};
const Shape kShapes[] = {{1, 1, 1, 1},  {2, 3, 5, 16}, {1, 7, 7, 33}, {3, 2, 2, 64}, {1, 4, 9, 130},
                         {2, 1, 3, 24}, {0, 2, 2, 8},  {1, 0, 2, 8},  {1, 2, 0, 8},  {2, 2, 2, 0}};

template <class F>
void for_each_geometry(F&& f) {
  for (const Shape& s : kShapes) {
    for (const int64_t halo : {0, 1}) {
      for (const int64_t gap_in : {0, 3}) {
        for (const int64_t gap_out : {0, 7}) f(s, halo, gap_in, gap_out);
      }
    }
  }
}

TEST_P(Layout, Copy) {
  Random random(1);
  for_each_geometry([&](const Shape& s, int64_t halo, int64_t gi, int64_t go) {
    Codes x(s.n, s.h, s.w, s.c, halo, gi), out(s.n, s.h, s.w, s.c, 1 - halo, go);
    x.fill(random);
    copy(x.view, out.view);
    out.each([&](auto... i) { ASSERT_EQ(out.at(i...), x.at(i...)); });
    ASSERT_TRUE(out.outside_intact());
  });
}

TEST_P(Layout, CopyOntoItself) {
  Random random(2);
  Codes x(1, 3, 4, 5);
  x.fill(random);
  const std::vector<uint8_t> before = x.values();
  copy(x.view, x.view);
  EXPECT_EQ(x.values(), before);
}

void check_gather(Codes& x, const std::vector<int32_t>& index, Codes& out) {
  Guarded<int32_t> guarded(static_cast<int64_t>(index.size()));
  std::copy(index.begin(), index.end(), guarded.data());
  gather_channels(x.view, guarded.data(), 99, out.view);
  out.each([&](int64_t n, int64_t y, int64_t w, int64_t c) {
    ASSERT_EQ(out.at(n, y, w, c), index[c] < 0 ? 99 : x.at(n, y, w, index[c])) << "channel " << c;
  });
  ASSERT_TRUE(out.outside_intact());
}

TEST_P(Layout, GatherAnyChannels) {
  Random random(3);
  for_each_geometry([&](const Shape& s, int64_t halo, int64_t gi, int64_t go) {
    if (s.c == 0) return;
    for (const int64_t channels : {1, 15, 16, 17, 40, 130}) {
      Codes x(s.n, s.h, s.w, s.c, halo, gi), out(s.n, s.h, s.w, channels, 1 - halo, go);
      x.fill(random);
      std::vector<int32_t> index(channels);
      for (int32_t& i : index) i = static_cast<int32_t>(random.in(-1, s.c - 1));
      check_gather(x, index, out);
    }
  });
}

TEST_P(Layout, GatherShufflesHalvesAndPads) {
  Random random(4);
  for (const int64_t groups : {2, 3, 4, 8}) {
    for (const int64_t each : {1, 2, 7, 16, 29, 58, 61}) {
      const int64_t c = groups * each;
      Codes x(2, 3, 5, c, 1), shuffled(2, 3, 5, c), half(2, 3, 5, c - c / 2),
          padded(2, 3, 5, c + 13);
      x.fill(random);
      std::vector<int32_t> index(c), second(c - c / 2), pad(c + 13, -1);
      for (int64_t i = 0; i < c; ++i)
        index[i] = static_cast<int32_t>(i % groups * each + i / groups);
      for (size_t i = 0; i < second.size(); ++i)
        second[i] = static_cast<int32_t>(c / 2 + static_cast<int64_t>(i));
      for (int64_t i = 0; i < c; ++i) pad[i + 5] = static_cast<int32_t>(i);
      check_gather(x, index, shuffled);
      check_gather(x, second, half);
      check_gather(x, pad, padded);
    }
  }
}

TEST_P(Layout, Slice) {
  Random random(5);
  for_each_geometry([&](const Shape& s, int64_t halo, int64_t gi, int64_t go) {
    Codes x(s.n, s.h, s.w, s.c, halo, gi);
    x.fill(random);
    for (const int64_t step : {1, 2, 3}) {
      for (const int64_t start : {0, 1}) {
        const int64_t h = std::max<int64_t>(0, (s.h - start + step - 1) / step);
        const int64_t w = std::max<int64_t>(0, (s.w - start + step - 1) / step);
        Codes out(s.n, h, w, s.c, halo, go);
        slice(x.view, start, step, start, step, out.view);
        out.each([&](int64_t n, int64_t y, int64_t v, int64_t c) {
          ASSERT_EQ(out.at(n, y, v, c), x.at(n, start + y * step, start + v * step, c));
        });
        ASSERT_TRUE(out.outside_intact());
      }
    }
  });
}

TEST_P(Layout, UpsampleByAnyIndex) {
  Random random(6);
  for_each_geometry([&](const Shape& s, int64_t halo, int64_t gi, int64_t go) {
    if (s.h * s.w == 0) return;
    Codes x(s.n, s.h, s.w, s.c, halo, gi), out(s.n, 2 * s.h + 1, 3 * s.w, s.c, halo, go);
    x.fill(random);
    std::vector<int64_t> rows(out.view.h), columns(out.view.w);
    for (int64_t& r : rows) r = random.below(s.h);
    for (int64_t& c : columns) c = random.below(s.w);
    upsample_nearest(x.view, rows.data(), columns.data(), out.view);
    out.each([&](int64_t n, int64_t y, int64_t w, int64_t c) {
      ASSERT_EQ(out.at(n, y, w, c), x.at(n, rows[y], columns[w], c));
    });
    ASSERT_TRUE(out.outside_intact());
  });
}

// The source row or column by numpy's definition of each mode, or -1.
int64_t padded_source(int64_t i, int64_t size, PadMode mode) {
  if (mode == PadMode::kConstant) return i >= 0 && i < size ? i : -1;
  if (mode == PadMode::kReplicate) return std::clamp<int64_t>(i, 0, size - 1);
  if (mode == PadMode::kCircular) return ((i % size) + size) % size;
  const int64_t period = std::max<int64_t>(2 * (size - 1), 1);
  const int64_t k = ((i % period) + period) % period;
  return k < size ? k : period - k;
}

TEST_P(Layout, PadInEveryMode) {
  Random random(7);
  for (const Shape& s : {Shape{1, 4, 5, 3}, {2, 3, 3, 16}, {1, 6, 2, 70}, {1, 5, 5, 1}}) {
    for (const PadMode mode :
         {PadMode::kConstant, PadMode::kReflect, PadMode::kReplicate, PadMode::kCircular}) {
      for (const int64_t top : {0, 1, 2}) {
        for (const int64_t left : {0, 1}) {
          for (const int64_t gap : {0, 3}) {
            Codes x(s.n, s.h, s.w, s.c, 1, gap),
                out(s.n, s.h + top + 1, s.w + left + 1, s.c, 1, 3 - gap);
            x.fill(random);
            pad(x.view, top, left, mode, 55, out.view);
            out.each([&](int64_t n, int64_t y, int64_t w, int64_t c) {
              const int64_t row = padded_source(y - top, s.h, mode),
                            column = padded_source(w - left, s.w, mode);
              ASSERT_EQ(out.at(n, y, w, c), row < 0 || column < 0 ? 55 : x.at(n, row, column, c))
                  << "mode " << static_cast<int>(mode) << " " << y << "," << w;
            });
            ASSERT_TRUE(out.outside_intact());
          }
        }
      }
    }
  }
}

TEST_P(Layout, NegativeConstantPadCrops) {
  Random random(8);
  Codes x(1, 5, 6, 4), out(1, 3, 4, 4);
  x.fill(random);
  pad(x.view, -1, -2, PadMode::kConstant, 0, out.view);
  out.each([&](int64_t n, int64_t y, int64_t w, int64_t c) {
    ASSERT_EQ(out.at(n, y, w, c), x.at(n, y + 1, w + 2, c));
  });
}

TEST_P(Layout, FlattenAndBack) {
  Random random(9);
  for_each_geometry([&](const Shape& s, int64_t halo, int64_t gi, int64_t go) {
    Codes x(s.n, s.h, s.w, s.c, halo, gi), rows(1, 1, s.n, s.c * s.h * s.w, 0, go),
        back(s.n, s.h, s.w, s.c, halo, gi);
    x.fill(random);
    flatten(x.view, rows.view);
    x.each([&](int64_t n, int64_t y, int64_t w, int64_t c) {
      ASSERT_EQ(rows.at(0, 0, n, (c * s.h + y) * s.w + w), x.at(n, y, w, c));
    });
    ASSERT_TRUE(rows.outside_intact());
    unflatten(rows.view, back.view);
    back.each([&](auto... i) { ASSERT_EQ(back.at(i...), x.at(i...)); });
    ASSERT_TRUE(back.outside_intact());
  });
}

TEST_P(Layout, LargeWithThreads) {
  Random random(10);
  Codes x(2, 64, 64, 116, 1), out(2, 64, 64, 116), rows(1, 1, 2, 64 * 64 * 116),
      back(2, 64, 64, 116);
  x.fill(random);
  std::vector<int32_t> index(116);
  for (int i = 0; i < 116; ++i) index[i] = i % 2 * 58 + i / 2;
  for_each_thread_count([&](int threads) {
    copy(x.view, out.view);
    out.each([&](auto... i) { ASSERT_EQ(out.at(i...), x.at(i...)) << threads; });
    gather_channels(x.view, index.data(), 0, out.view);
    out.each([&](int64_t n, int64_t y, int64_t w, int64_t c) {
      ASSERT_EQ(out.at(n, y, w, c), x.at(n, y, w, index[c]));
    });
    flatten(x.view, rows.view);
    unflatten(rows.view, back.view);
    back.each([&](auto... i) { ASSERT_EQ(back.at(i...), x.at(i...)); });
  });
}

}  // namespace
}  // namespace octavo

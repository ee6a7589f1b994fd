// Tests pool.cpp on every ISA: windows clipped at every border, torch's divisors, adaptive windows,
// against loops over all positions of the padded image.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "element_test.h"

namespace octavo {
namespace {

using testing::clamped;
using testing::Codes;
using testing::for_each_mode_and_thread_count;
using testing::Random;

class Pool : public testing::IsaTest {};
OCTAVO_FOR_EVERY_ISA(Pool);

struct Case {
  ConvGeometry g;
  int64_t pad_bottom, pad_right;
  bool ceil;
};

int64_t out_size(int64_t in, int64_t kernel, int64_t stride, int64_t before, int64_t after,
                 int64_t dilation, bool ceil) {
  const int64_t room = in + before + after - dilation * (kernel - 1) - 1;
  int64_t out = (room + (ceil ? stride - 1 : 0)) / stride + 1;
  if (ceil && (out - 1) * stride >= in + before) --out;  // the last window starts inside, as torch
  return out;
}

std::string text(const Case& k) {
  return "kernel " + std::to_string(k.g.kernel_h) + "," + std::to_string(k.g.kernel_w) +
         " stride " + std::to_string(k.g.stride_h) + "," + std::to_string(k.g.stride_w) + " pad " +
         std::to_string(k.g.pad_top) + "," + std::to_string(k.g.pad_left) + " dilation " +
         std::to_string(k.g.dilation_h) + "," + std::to_string(k.g.dilation_w) +
         (k.ceil ? " ceil" : "");
}

Case random_case(Random& random, bool dilated) {
  Case k;
  k.g.kernel_h = random.in(1, 5), k.g.kernel_w = random.in(1, 5);
  if (random.below(3) == 0) k.g.kernel_h = k.g.kernel_w = random.in(2, 3);
  k.g.stride_h = random.in(1, 4), k.g.stride_w = random.in(1, 4);
  k.g.dilation_h = dilated ? random.in(1, 3) : 1, k.g.dilation_w = dilated ? random.in(1, 3) : 1;
  k.g.pad_top = random.in(0, k.g.kernel_h / 2), k.g.pad_left = random.in(0, k.g.kernel_w / 2);
  k.pad_bottom = k.g.pad_top, k.pad_right = k.g.pad_left;
  k.ceil = random.below(2) == 0;
  return k;
}

template <class F>
void for_each_case(uint64_t seed, bool dilated, F&& f) {
  Random random(seed);
  const int cases = testing::ci_suite() ? 3000 : 300;
  for (int i = 0; i < cases; ++i) {
    const Case k = random_case(random, dilated);
    const int64_t h = random.in(1, 14), w = random.in(1, 14);
    const int64_t oh =
        out_size(h, k.g.kernel_h, k.g.stride_h, k.g.pad_top, k.pad_bottom, k.g.dilation_h, k.ceil);
    const int64_t ow =
        out_size(w, k.g.kernel_w, k.g.stride_w, k.g.pad_left, k.pad_right, k.g.dilation_w, k.ceil);
    if (oh < 1 || ow < 1) continue;
    const int64_t channels = random.below(2) == 0 ? random.in(1, 130) : 16 * random.in(1, 8);
    Codes x(random.in(1, 2), h, w, channels, random.in(0, 1), random.below(2) * 3);
    Codes out(x.view.n, oh, ow, channels, random.in(0, 1), random.below(2) * 5);
    x.fill(random);
    f(random, k, x, out);
    ASSERT_TRUE(out.outside_intact()) << text(k);
  }
}

// Calls f(position is inside, code) for every tap of a window.
template <class F>
void for_each_tap(Codes& x, const ConvGeometry& g, int64_t n, int64_t y, int64_t w, int64_t c,
                  F&& f) {
  for (int64_t i = 0; i < g.kernel_h; ++i) {
    for (int64_t j = 0; j < g.kernel_w; ++j) {
      const int64_t row = y * g.stride_h - g.pad_top + i * g.dilation_h;
      const int64_t column = w * g.stride_w - g.pad_left + j * g.dilation_w;
      const bool inside = row >= 0 && row < x.view.h && column >= 0 && column < x.view.w;
      f(row, column, inside, inside ? x.at(n, row, column, c) : 0);
    }
  }
}

TEST_P(Pool, Maximum) {
  for_each_case(1, true, [&](Random&, const Case& k, Codes& x, Codes& out) {
    max_pool(x.view, k.g, out.view);
    out.each([&](int64_t n, int64_t y, int64_t w, int64_t c) {
      int expected = 0;
      for_each_tap(x, k.g, n, y, w, c, [&](int64_t, int64_t, bool inside, int code) {
        if (inside) expected = std::max(expected, code);
      });
      ASSERT_EQ(out.at(n, y, w, c), expected) << text(k) << " c " << c;
    });
  });
}

TEST_P(Pool, AverageWithEveryDivisor) {
  for_each_case(2, false, [&](Random& random, const Case& k, Codes& x, Codes& out) {
    for (const bool include_pad : {false, true}) {
      for (const int64_t divisor_override : {0, 7}) {
        const AveragePool p{k.g, k.pad_bottom, k.pad_right, include_pad, divisor_override};
        const auto z = static_cast<int32_t>(random.code());
        const float m = 1.3f + random.real(), offset = 64.0f * random.real() + 90.0f;
        average_pool(x.view, p, z, m, offset, 1, 253, out.view);
        out.each([&](int64_t n, int64_t y, int64_t w, int64_t c) {
          int64_t sum = 0, inside_count = 0, padded_count = 0;
          for_each_tap(x, k.g, n, y, w, c, [&](int64_t row, int64_t column, bool inside, int code) {
            if (inside) sum += code - z, ++inside_count;
            padded_count += row < x.view.h + k.pad_bottom && column < x.view.w + k.pad_right;
          });
          int64_t divisor = divisor_override > 0 ? divisor_override
                            : include_pad        ? padded_count
                                                 : inside_count;
          if (divisor == 0) divisor = 1;
          const auto quotient =
              static_cast<float>(static_cast<double>(m) / static_cast<double>(divisor));
          const float v = std::fmaf(static_cast<float>(sum), quotient, offset);
          ASSERT_EQ(out.at(n, y, w, c), clamped(v, 1, 253)) << text(k) << " pad " << include_pad;
        });
      }
    }
  });
}

// torch's rule: from floor(i * in / out) to ceil((i + 1) * in / out).
template <class F>
void for_each_adaptive_tap(Codes& x, Codes& out, int64_t n, int64_t y, int64_t w, int64_t c,
                           F&& f) {
  const auto first = [](int64_t i, int64_t in, int64_t o) {
    return static_cast<int64_t>(std::floor(1.0 * i * in / o));
  };
  const auto last = [](int64_t i, int64_t in, int64_t o) {
    return static_cast<int64_t>(std::ceil(1.0 * (i + 1) * in / o));
  };
  for (int64_t i = first(y, x.view.h, out.view.h); i < last(y, x.view.h, out.view.h); ++i) {
    for (int64_t j = first(w, x.view.w, out.view.w); j < last(w, x.view.w, out.view.w); ++j)
      f(x.at(n, i, j, c));
  }
}

TEST_P(Pool, Adaptive) {
  Random random(3);
  const int cases = testing::ci_suite() ? 1000 : 150;
  for (int i = 0; i < cases; ++i) {
    const int64_t c = random.below(2) == 0 ? random.in(1, 300) : 32 * random.in(1, 10);
    Codes x(random.in(1, 2), random.in(1, 19), random.in(1, 19), c, random.in(0, 1),
            random.below(2) * 3);
    Codes out(x.view.n, random.below(2) == 0 ? 1 : random.in(1, 20),
              random.below(2) == 0 ? 1 : random.in(1, 20), c, random.in(0, 1), random.below(2) * 9);
    x.fill(random);
    const auto z = static_cast<int32_t>(random.code());
    adaptive_average_pool(x.view, z, 0.77f, 31.4f, 0, 255, out.view);
    out.each([&](int64_t n, int64_t y, int64_t w, int64_t k) {
      int64_t sum = 0, count = 0;
      for_each_adaptive_tap(x, out, n, y, w, k, [&](int code) { sum += code - z, ++count; });
      const auto quotient =
          static_cast<float>(static_cast<double>(0.77f) / static_cast<double>(count));
      ASSERT_EQ(out.at(n, y, w, k),
                clamped(std::fmaf(static_cast<float>(sum), quotient, 31.4f), 0, 255));
    });
    ASSERT_TRUE(out.outside_intact());
    adaptive_max_pool(x.view, out.view);
    out.each([&](int64_t n, int64_t y, int64_t w, int64_t k) {
      int expected = 0;
      for_each_adaptive_tap(x, out, n, y, w, k,
                            [&](int code) { expected = std::max(expected, code); });
      ASSERT_EQ(out.at(n, y, w, k), expected);
    });
    ASSERT_TRUE(out.outside_intact());
  }
}

TEST_P(Pool, SixteenBitSumsNeverWrap) {
  // All codes 255: 257 taps fill 16 bits exactly, 258 do not fit.
  for (const int64_t taps : {255, 256, 257, 258, 259, 513, 514, 515, 1029}) {
    Codes x(1, 1, taps, 40), out(1, 1, 1, 40);
    std::memset(x.view.data, 255, taps * 40);
    adaptive_average_pool(x.view, 0, 1.0f, 0.0f, 0, 255, out.view);
    for (int64_t c = 0; c < 40; ++c) ASSERT_EQ(out.at(0, 0, 0, c), 255) << taps;
    Codes square(1, taps, 3, 33);
    std::memset(square.view.data, 255, taps * 3 * 33);
    adaptive_average_pool(square.view, 254, 1.0f, 0.0f, 0, 255, Codes(1, 1, 1, 33).view);
    Codes one(1, 1, 1, 33);
    adaptive_average_pool(square.view, 254, 1.0f, 0.0f, 0, 255, one.view);
    for (int64_t c = 0; c < 33; ++c) ASSERT_EQ(one.at(0, 0, 0, c), 1) << taps;
  }
}

TEST_P(Pool, MoreTapsThanInt32Holds) {
  // 2^24 taps of 255: the sum is 2^32 - 2^24.
  Codes x(1, 4096, 4097, 1), out(1, 1, 1, 1);
  std::memset(x.view.data, 255, 4096 * 4097);
  adaptive_average_pool(x.view, 0, 1.0f, 0.0f, 0, 255, out.view);
  EXPECT_EQ(out.at(0, 0, 0, 0), 255);
  adaptive_average_pool(x.view, 155, 1.0f, 3.0f, 0, 255, out.view);
  EXPECT_EQ(out.at(0, 0, 0, 0), 103);
}

TEST_P(Pool, ModesAndThreadsDoNotMatter) {
  Random random(4);
  Codes x(2, 112, 112, 64, 1), pooled(2, 56, 56, 64, 1), averaged(2, 56, 56, 64),
      global(2, 1, 1, 64);
  x.fill(random);
  const ConvGeometry g{3, 3, 2, 2, 1, 1, 1, 1};
  const AveragePool p{g, 1, 1, true, 0};
  auto run = [&] {
    max_pool(x.view, g, pooled.view);
    average_pool(x.view, p, 100, 1.7f, 20.0f, 0, 255, averaged.view);
    adaptive_average_pool(x.view, 100, 1.7f, 20.0f, 0, 255, global.view);
    return std::vector<std::vector<uint8_t>>{pooled.values(), averaged.values(), global.values()};
  };
  const auto expected = run();
  for_each_mode_and_thread_count([&](const std::string& mode, int threads) {
    EXPECT_EQ(run(), expected) << threads << " " << mode;
  });
}

TEST_P(Pool, NothingToDo) {
  for (const auto& [n, h, w, c] : {std::array<int64_t, 4>{0, 4, 4, 8}, {1, 4, 4, 0}}) {
    Codes x(n, h, w, c), out(n, 2, 2, c);
    max_pool(x.view, {2, 2, 2, 2, 0, 0, 1, 1}, out.view);
    average_pool(x.view, {{2, 2, 2, 2, 0, 0, 1, 1}, 0, 0, true, 0}, 0, 1, 0, 0, 255, out.view);
    adaptive_average_pool(x.view, 0, 1, 0, 0, 255, out.view);
    adaptive_max_pool(x.view, out.view);
    ASSERT_TRUE(out.outside_intact());
  }
}

}  // namespace
}  // namespace octavo

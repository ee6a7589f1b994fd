// Tests minmax.cpp on every ISA: ranges of the finite values, counts of the others, histograms in
// exact integers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "element_test.h"

namespace octavo {
namespace {

using testing::for_each_mode;
using testing::for_each_thread_count;
using testing::Guarded;
using testing::Random;

class MinMaxOf : public testing::IsaTest {};
OCTAVO_FOR_EVERY_ISA(MinMaxOf);

constexpr float kInfinity = std::numeric_limits<float>::infinity();

MinMax expected_minmax(const float* x, int64_t outer, int64_t stride, int64_t inner) {
  MinMax r{kInfinity, -kInfinity, 0};
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < inner; ++i) {
      const float v = x[o * stride + i];
      if (!std::isfinite(v)) {
        ++r.non_finite;
        continue;
      }
      if (v < r.min) r.min = v;
      if (v > r.max) r.max = v;
    }
  }
  return r;
}

void expect_same(const MinMax& got, const MinMax& expected) {
  ASSERT_EQ(got.min, expected.min);
  ASSERT_EQ(got.max, expected.max);
  ASSERT_EQ(got.non_finite, expected.non_finite);
  ASSERT_FALSE(got.min == 0.0f && std::signbit(got.min)) << "-0 as minimum";
  ASSERT_FALSE(got.max == 0.0f && std::signbit(got.max)) << "-0 as maximum";
}

TEST_P(MinMaxOf, EveryLengthUpTo300) {
  Random random(1);
  for (int64_t count = 0; count <= 300; ++count) {
    for (const int kind : {0, 1, 2, 3}) {
      Guarded<float> x(count);
      for (int64_t i = 0; i < count; ++i) {
        x[i] = kind == 0   ? random.real()
               : kind == 1 ? random.value(1.0f, 0.1f)
               : kind == 2 ? (random.below(2) == 0 ? NAN : kInfinity)
                           : (random.below(2) == 0 ? -0.0f : 0.0f);
      }
      expect_same(minmax(x.data(), count), expected_minmax(x.data(), 1, 0, count));
    }
  }
}

TEST_P(MinMaxOf, ExtremeAnywhere) {
  const int64_t count = 200;
  for (int64_t at = 0; at < count; ++at) {
    Guarded<float> x(count);
    std::fill(x.data(), x.data() + count, 1.0f);
    x[at] = -5.0f;
    x[(at + 77) % count] = 9.0f;
    expect_same(minmax(x.data(), count), {-5.0f, 9.0f, 0});
  }
}

TEST_P(MinMaxOf, DenormalsInEveryMode) {
  const float x[] = {0x1p-149f, 0x1p-130f, 0x1p-149f};
  for_each_mode([&](const std::string& mode) {
    const MinMax r = minmax(x, 3);
    uint32_t min, max;
    std::memcpy(&min, &r.min, 4);
    std::memcpy(&max, &r.max, 4);
    EXPECT_EQ(min, 1u) << mode;
    EXPECT_EQ(max, 1u << 19) << mode;
  });
}

TEST_P(MinMaxOf, ThreadsDoNotMatter) {
  Random random(2);
  const int64_t count = 1'500'007;
  std::vector<float> x(count);
  for (float& v : x) v = random.value(1.0f, 0.001f);
  const MinMax expected = expected_minmax(x.data(), 1, 0, count);
  for_each_thread_count([&](int) { expect_same(minmax(x.data(), count), expected); });
}

TEST_P(MinMaxOf, PerChannel) {
  Random random(3);
  for (const int64_t outer : {0, 1, 2, 37}) {
    for (const int64_t channels : {0, 1, 3, 16, 17, 255, 256, 300}) {
      for (const int64_t inner : {0, 1, 2, 30}) {
        Guarded<float> x(outer * channels * inner);
        for (int64_t i = 0; i < x.size(); ++i) x[i] = random.value(1.0f, 0.1f);
        std::vector<MinMax> out(channels);
        minmax_per_channel(x.data(), outer, channels, inner, out.data());
        for (int64_t c = 0; c < channels; ++c) {
          expect_same(out[c],
                      expected_minmax(x.data() + c * inner, outer, channels * inner, inner));
        }
      }
    }
  }
}

TEST_P(MinMaxOf, PerChannelWithThreads) {
  Random random(4);
  for (const int64_t inner : {1, 400}) {
    const int64_t channels = 300, outer = 1'200'000 / channels / inner;
    std::vector<float> x(outer * channels * inner);
    for (float& v : x) v = random.value(1.0f, 0.001f);
    for_each_thread_count([&](int) {
      std::vector<MinMax> out(channels);
      minmax_per_channel(x.data(), outer, channels, inner, out.data());
      for (int64_t c = 0; c < channels; ++c) {
        expect_same(out[c], expected_minmax(x.data() + c * inner, outer, channels * inner, inner));
      }
    });
  }
}

// floor(x / 2^exponent) without division: frexp gives x as an integer times a power of two.
int64_t expected_bin(float x, int32_t exponent, int64_t first, int64_t bins) {
  int shift;
  const auto mantissa = static_cast<int64_t>(std::frexp(static_cast<double>(x), &shift) * 0x1p24);
  shift -= 24 + exponent;
  // x / 2^exponent = mantissa * 2^shift, |mantissa| < 2^25.
  if (shift > 30)
    return mantissa < 0 ? 0 : mantissa == 0 ? std::clamp<int64_t>(-first, 0, bins - 1) : bins - 1;
  const int64_t floored = shift >= 0    ? mantissa * (int64_t{1} << shift)
                          : shift > -62 ? mantissa >> -shift
                                        : (mantissa < 0 ? -1 : 0);
  return std::clamp<int64_t>(floored - first, 0, bins - 1);
}

TEST_P(MinMaxOf, HistogramOfAnything) {
  Random random(5);
  for (const int32_t exponent : {-160, -149, -20, -8, -1, 0, 3, 100, 127, 140}) {
    for (const auto& [first, bins] :
         {std::pair<int64_t, int64_t>{-1024, 2048}, {0, 1}, {-5, 7}, {100, 64}, {0, 2048}}) {
      for (const int64_t count : {0, 1, 15, 16, 17, 500}) {
        Guarded<float> x(count);
        for (int64_t i = 0; i < count; ++i) {
          x[i] = random.below(3) == 0 ? std::ldexp(random.real() * 3000.0f, exponent)
                                      : random.value(5.0f, 0.25f);
        }
        std::vector<int64_t> expected(bins, 3), got(bins, 3);
        for (int64_t i = 0; i < count; ++i) {
          if (std::isfinite(x[i])) ++expected[expected_bin(x[i], exponent, first, bins)];
        }
        histogram(x.data(), count, exponent, first, bins, got.data());
        ASSERT_EQ(got, expected) << "exponent " << exponent << " first " << first;
      }
    }
  }
}

TEST_P(MinMaxOf, HistogramTinyNegativeIsBelowZero) {
  // -2^-149 / 2^10 underflows in float32; its floor is -1, not 0.
  const float x[] = {-0x1p-149f, 0x1p-149f, -0.0f};
  for_each_mode([&](const std::string& mode) {
    int64_t bins[3] = {0, 0, 0};
    histogram(x, 3, 10, -2, 3, bins);
    EXPECT_EQ((std::vector<int64_t>{bins, bins + 3}), (std::vector<int64_t>{0, 1, 2})) << mode;
  });
}

TEST_P(MinMaxOf, HistogramWithThreads) {
  Random random(6);
  const int64_t count = 700'003;
  std::vector<float> x(count);
  for (float& v : x) v = random.value(4.0f, 0.001f);
  std::vector<int64_t> expected(4096, 0);
  for (const float v : x) {
    if (std::isfinite(v)) ++expected[expected_bin(v, -9, -2048, 4096)];
  }
  for_each_thread_count([&](int threads) {
    std::vector<int64_t> got(4096, 0);
    histogram(x.data(), count, -9, -2048, 4096, got.data());
    EXPECT_EQ(got, expected) << threads;
  });
}

}  // namespace
}  // namespace octavo

// Tests quantize.cpp on every ISA against the formulas of csrc/kernels/kernels.h in double
// arithmetic.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "element_test.h"

namespace octavo {
namespace {

using testing::clamped;
using testing::Codes;
using testing::for_each_mode;
using testing::for_each_thread_count;
using testing::Guarded;
using testing::Random;
using testing::Reals;

class Quantize : public testing::IsaTest {};
OCTAVO_FOR_EVERY_ISA(Quantize);

// The product of two float32 is exact in double, so one rounding to float32 follows.
int32_t expected_code(float x, float scale, int32_t z, int32_t qmin, int32_t qmax) {
  const auto r = static_cast<float>(1.0 / static_cast<double>(scale));
  const auto product = static_cast<float>(static_cast<double>(x) * static_cast<double>(r));
  return clamped(product, qmin - z, qmax - z) + z;
}

const QuantParams kParams[] = {{0.02f, 114, 255},  {1.0f, 0, 255}, {0.7f, 255, 255},
                               {0x1p-126f, 3, 15}, {3e38f, 8, 15}, {0.037f, 1, 3}};

TEST_P(Quantize, EveryLengthUpTo300) {
  Random random(1);
  for (const QuantParams& p : kParams) {
    for (int64_t count = 0; count <= 300; ++count) {
      Guarded<float> x(count);
      Guarded<uint8_t> q(count);
      for (int64_t i = 0; i < count; ++i) x[i] = random.value(200.0f * p.scale, p.scale);
      quantize(x.data(), count, p, q.data());
      for (int64_t i = 0; i < count; ++i) {
        ASSERT_EQ(q[i], expected_code(x[i], p.scale, p.zero_point, 0, p.max_code))
            << "x " << x[i] << " scale " << p.scale << " z " << p.zero_point << " count " << count;
      }
    }
  }
}

TEST_P(Quantize, ModesAndThreadsDoNotMatter) {
  Random random(2);
  const int64_t count = 700'001;
  Guarded<float> x(count);
  Guarded<uint8_t> q(count);
  for (int64_t i = 0; i < count; ++i) x[i] = random.value(3.0f, 0.02f);
  quantize(x.data(), count, kParams[0], q.data());
  const std::vector<uint8_t> expected = q.copy();
  for (int64_t i = 0; i < count; ++i) {
    ASSERT_EQ(expected[i], expected_code(x[i], 0.02f, 114, 0, 255)) << x[i];
  }
  for_each_thread_count([&](int threads) {
    for_each_mode([&](const std::string& mode) {
      std::memset(q.data(), 0, count);
      quantize(x.data(), count, kParams[0], q.data());
      EXPECT_EQ(q.copy(), expected) << threads << " threads, rounding " << mode;
    });
  });
}

TEST_P(Quantize, DenormalsCountUnderFlushToZero) {
  // 2^-149 * (1 / 2^-126) = 2^-23 rounds to 0, 2^-127 / 2^-126 = 1/2 is a tie, 3 * 2^-127
  // gives 1.5.
  const float x[] = {0x1p-149f, 0x1p-127f, 0x1.8p-126f, -0x1.8p-126f, 0x1.4p-126f};
  for_each_mode([&](const std::string& mode) {
    uint8_t q[5];
    quantize(x, 5, {0x1p-126f, 10, 255}, q);
    EXPECT_EQ((std::vector<int>{q, q + 5}), (std::vector<int>{10, 10, 12, 8, 11})) << mode;
  });
}

TEST_P(Quantize, PerChannelEveryAxis) {
  Random random(3);
  for (const int64_t outer : {0, 1, 3}) {
    for (const int64_t channels : {0, 1, 2, 15, 16, 17, 33, 130}) {
      for (const int64_t inner : {0, 1, 2, 9, 16, 63, 130}) {
        const int64_t count = outer * channels * inner;
        Guarded<float> x(count);
        Guarded<float> scale(channels);
        Guarded<int8_t> q(count);
        for (int64_t c = 0; c < channels; ++c) scale[c] = 0.01f + 0.01f * static_cast<float>(c % 7);
        for (int64_t i = 0; i < count; ++i) x[i] = random.value(2.0f, 0.03f);
        for (const auto& [qmin, qmax] : {std::pair{-127, 127}, {-128, 127}, {-8, 7}, {-2, 1}}) {
          quantize_per_channel(x.data(), outer, channels, inner, scale.data(), qmin, qmax,
                               q.data());
          for (int64_t i = 0; i < count; ++i) {
            const float s = scale[i / inner % channels];
            ASSERT_EQ(q[i], expected_code(x[i], s, 0, qmin, qmax)) << x[i] << " " << s;
          }
        }
      }
    }
  }
}

TEST_P(Quantize, PerChannelInEveryMode) {
  Random random(4);
  const int64_t outer = 5, channels = 31;
  for (const int64_t inner : {1, 20}) {
    std::vector<float> x(outer * channels * inner), scale(channels);
    for (float& v : x) v = random.value(2.0f, 0.03f);
    for (float& s : scale) s = 0.02f + 0.01f * std::fabs(random.real());
    std::vector<int8_t> expected(x.size()), q(x.size());
    quantize_per_channel(x.data(), outer, channels, inner, scale.data(), -127, 127,
                         expected.data());
    for_each_mode([&](const std::string& mode) {
      quantize_per_channel(x.data(), outer, channels, inner, scale.data(), -127, 127, q.data());
      EXPECT_EQ(q, expected) << mode;
    });
  }
}

TEST_P(Quantize, DequantizeEveryLength) {
  Random random(5);
  for (int64_t count = 0; count <= 200; ++count) {
    Guarded<uint8_t> q(count);
    Guarded<float> y(count);
    for (int64_t i = 0; i < count; ++i) q[i] = random.code();
    for (const QuantParams& p : kParams) {
      dequantize(q.data(), count, p, y.data());
      for (int64_t i = 0; i < count; ++i) {
        const double exact = static_cast<double>(p.scale) * (q[i] - p.zero_point);
        ASSERT_EQ(y[i], static_cast<float>(exact));
      }
    }
  }
}

struct Shape {
  int64_t n, h, w, c;
};
const Shape kShapes[] = {
    {1, 1, 1, 1},  {2, 3, 5, 3},   {1, 4, 17, 3},  {1, 9, 33, 1}, {2, 2, 3, 2},   {1, 7, 7, 16},
    {2, 5, 6, 17}, {1, 3, 64, 15}, {1, 2, 65, 33}, {3, 1, 1, 64}, {1, 1, 130, 5}, {1, 16, 16, 4},
    {0, 3, 3, 3},  {1, 0, 3, 3},   {1, 3, 0, 3},   {2, 3, 3, 0},  {1, 6, 11, 130}};
const char* kOrders[] = {"nchw", "nhwc", "nhcw", "cnhw", "whcn", "ncwh"};

// Any layout of the float image, any halo and gaps of the codes.
template <class F>
void for_each_layout(F&& f) {
  for (const Shape& s : kShapes) {
    for (const char* order : kOrders) {
      for (const int64_t step : {1, 2}) {
        for (const int64_t halo : {0, 1, 3}) {
          for (const int64_t gap : {0, 1, 5}) f(s, order, step, halo, gap);
        }
      }
    }
  }
}

TEST_P(Quantize, ImagesOfAnyLayout) {
  Random random(6);
  for_each_layout([&](const Shape& s, const char* order, int64_t step, int64_t halo, int64_t gap) {
    Reals x(s.n, s.h, s.w, s.c, order, step);
    Codes q(s.n, s.h, s.w, s.c, halo, gap, halo);
    x.each([&](auto... i) { x.at(i...) = random.value(3.0f, 0.02f); });
    quantize_image(x.view, {0.02f, 114, 255}, q.view);
    q.each([&](auto... i) {
      ASSERT_EQ(q.at(i...), expected_code(x.at(i...), 0.02f, 114, 0, 255)) << order;
    });
    ASSERT_TRUE(q.outside_intact()) << order << " c " << s.c << " halo " << halo << " gap " << gap;
  });
}

TEST_P(Quantize, EveryChannelCount) {
  Random random(7);
  for (int64_t c = 1; c <= 130; ++c) {
    Reals x(1, 3, 19, c);
    Codes q(1, 3, 19, c, 1);
    x.each([&](auto... i) { x.at(i...) = random.value(3.0f, 0.02f); });
    quantize_image(x.view, {0.02f, 7, 255}, q.view);
    q.each([&](auto... i) { ASSERT_EQ(q.at(i...), expected_code(x.at(i...), 0.02f, 7, 0, 255)); });
    ASSERT_TRUE(q.outside_intact());
    Reals y(1, 3, 19, c);
    dequantize_image(q.view, {0.02f, 7, 255}, y.view);
    y.each([&](auto... i) {
      ASSERT_EQ(y.at(i...), static_cast<float>(static_cast<double>(0.02f) * (q.at(i...) - 7)));
    });
  }
}

TEST_P(Quantize, DequantizeImagesOfAnyLayout) {
  Random random(8);
  for_each_layout([&](const Shape& s, const char* order, int64_t step, int64_t halo, int64_t gap) {
    Codes q(s.n, s.h, s.w, s.c, halo, gap);
    Reals y(s.n, s.h, s.w, s.c, order, step);
    q.fill(random);
    const float before = step == 2 && s.n * s.h * s.w * s.c > 1 ? y.view.data[1] : 0.0f;
    dequantize_image(q.view, {0.3f, 77, 255}, y.view);
    y.each([&](auto... i) {
      ASSERT_EQ(y.at(i...), static_cast<float>(static_cast<double>(0.3f) * (q.at(i...) - 77)));
    });
    if (step == 2 && s.n * s.h * s.w * s.c > 1) {
      ASSERT_EQ(std::memcmp(&before, &y.view.data[1], 4), 0) << "wrote between strides";
    }
  });
}

TEST_P(Quantize, LargeImageWithThreads) {
  Random random(9);
  for (const int64_t c : {3, 24}) {
    Reals x(2, 224, 224, c);
    x.each([&](auto... i) { x.at(i...) = random.value(3.0f, 0.02f); });
    for_each_thread_count([&](int threads) {
      for (const int64_t halo : {0, 3}) {
        Codes q(2, 224, 224, c, halo);
        quantize_image(x.view, {0.02f, 114, 255}, q.view);
        q.each([&](auto... i) {
          ASSERT_EQ(q.at(i...), expected_code(x.at(i...), 0.02f, 114, 0, 255)) << threads;
        });
        ASSERT_TRUE(q.outside_intact());
      }
    });
  }
}

TEST_P(Quantize, ExpandedInputIsReadInPlace) {
  float row[4] = {-1.0f, 0.5f, 0.25f, 2.0f};
  Codes q(2, 3, 4, 5);
  quantize_image({row, 2, 3, 4, 5, 0, 0, 1, 0}, {0.25f, 10, 255}, q.view);
  q.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    ASSERT_EQ(q.at(n, y, x, c), expected_code(row[x], 0.25f, 10, 0, 255));
  });
}

TEST_P(Quantize, CopyImageBetweenLayouts) {
  Random random(10);
  for (const Shape& s : kShapes) {
    for (const char* from : kOrders) {
      for (const char* to : kOrders) {
        Reals x(s.n, s.h, s.w, s.c, from), y(s.n, s.h, s.w, s.c, to, 2);
        x.each([&](auto... i) { x.at(i...) = random.value(3.0f, 0.02f); });
        copy_image(x.view, y.view);
        x.each([&](auto... i) { ASSERT_EQ(std::memcmp(&x.at(i...), &y.at(i...), 4), 0); });
      }
    }
  }
}

QuantParams expected_params(double min, double max, int32_t max_code) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  min = std::max(std::min(min, 0.0), -kLargest);
  max = std::min(std::max(max, 0.0), kLargest);
  // Differences and quotients of float32 in double, rounded once more, are the float32 results.
  const float range = static_cast<float>(std::min<double>(static_cast<float>(max - min), kLargest));
  const float scale =
      std::max(static_cast<float>(static_cast<double>(range) / max_code), kMinScale);
  const auto zero = static_cast<float>(-min / static_cast<double>(scale));
  return {scale, clamped(zero, 0, max_code), max_code};
}

TEST_P(Quantize, ParamsOfRange) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Random random(11);
  std::vector<std::pair<float, float>> ranges = {{0, 0},
                                                 {0, 1},
                                                 {-1, 0},
                                                 {-1, 1},
                                                 {2, 3},
                                                 {-3, -2},
                                                 {-1e-9f, 0},
                                                 {0, kInfinity},
                                                 {-3e38f, 3e38f},
                                                 {-kInfinity, kInfinity},
                                                 {kInfinity, -kInfinity},
                                                 {0x1p-149f, 0x1p-140f}};
  for (int i = 0; i < 2000; ++i) {
    const float a = random.real() * 10.0f, b = random.real() * 10.0f;
    ranges.push_back({std::min(a, b), std::max(a, b)});
  }
  for (const auto& [min, max] : ranges) {
    for (const int32_t max_code : {255, 127, 15, 3}) {
      const QuantParams expected = expected_params(min, max, max_code);
      for_each_mode([&, lo = min, hi = max](const std::string& mode) {
        const QuantParams p = params_of_range(lo, hi, max_code);
        ASSERT_EQ(p.scale, expected.scale) << lo << " " << hi << " " << mode;
        ASSERT_EQ(p.zero_point, expected.zero_point) << lo << " " << hi << " " << mode;
        ASSERT_EQ(p.max_code, max_code);
      });
    }
  }
}

TEST_P(Quantize, DynamicParamsAndCodesPerSample) {
  Random random(12);
  for_each_layout([&](const Shape& s, const char* order, int64_t step, int64_t halo, int64_t gap) {
    Reals x(s.n, s.h, s.w, s.c, order, step);
    x.each([&](int64_t n, int64_t h, int64_t w, int64_t c) {
      const int64_t k = random.below(50);
      x.at(n, h, w, c) = k == 0 ? NAN : static_cast<float>(n + 1) * random.real() + 0.5f;
    });
    std::vector<QuantParams> p(s.n);
    dynamic_params(x.view, 255, p.data());
    std::vector<double> lo(s.n, INFINITY), hi(s.n, -INFINITY);
    x.each([&](int64_t n, int64_t h, int64_t w, int64_t c) {
      const float v = x.at(n, h, w, c);
      if (std::isnan(v)) return;
      lo[n] = std::min<double>(lo[n], v);
      hi[n] = std::max<double>(hi[n], v);
    });
    for (int64_t n = 0; n < s.n; ++n) {
      const QuantParams expected = expected_params(lo[n], hi[n], 255);
      ASSERT_EQ(p[n].scale, expected.scale) << order;
      ASSERT_EQ(p[n].zero_point, expected.zero_point) << order;
    }
    Codes q(s.n, s.h, s.w, s.c, halo, gap);
    quantize_image_per_sample(x.view, p.data(), q.view);
    q.each([&](int64_t n, int64_t h, int64_t w, int64_t c) {
      ASSERT_EQ(q.at(n, h, w, c),
                expected_code(x.at(n, h, w, c), p[n].scale, p[n].zero_point, 0, 255));
    });
    ASSERT_TRUE(q.outside_intact());
  });
}

TEST_P(Quantize, DynamicParamsWithThreads) {
  Random random(13);
  for (const char* order : {"nchw", "nhwc", "nhcw"}) {
    Reals x(3, 130, 130, 24, order);
    x.each([&](auto... i) { x.at(i...) = random.real(); });
    x.at(1, 77, 5, 23) = -9.0f;
    x.at(2, 0, 0, 0) = 4.0f;
    for_each_thread_count([&](int threads) {
      QuantParams p[3];
      dynamic_params(x.view, 255, p);
      EXPECT_EQ(p[1].zero_point, 230)
          << threads;  // 9 / ((9 + almost 1) / 255) = 229.5 and a little more
      EXPECT_EQ(p[2].zero_point, 51) << threads;
    });
  }
}

TEST_P(Quantize, InfinitiesCountInDynamicRanges) {
  float x[] = {1.0f, -std::numeric_limits<float>::infinity(), NAN};
  QuantParams p;
  dynamic_params({x, 1, 1, 3, 1, 3, 3, 1, 1}, 255, &p);
  EXPECT_EQ(p.scale, std::numeric_limits<float>::max() / 255.0f);
  EXPECT_EQ(p.zero_point, 255);
}

TEST_P(Quantize, FillHalo) {
  for (const Shape& s : kShapes) {
    for (const int64_t halo : {0, 1, 3}) {
      for (const int64_t gap : {0, 2}) {
        // Halos of neighbouring rows are the same memory: with gaps, rows are a whole number of
        // pixels apart.
        Codes q(s.n, s.h, s.w, s.c, halo, gap, gap == 0 ? 3 : 0);
        fill_halo(q.view, 17);
        for (int64_t n = 0; n < s.n; ++n) {
          for (int64_t y = -halo; y < s.h + halo; ++y) {
            for (int64_t x = -halo; x < s.w + halo; ++x) {
              const bool inside = y >= 0 && y < s.h && x >= 0 && x < s.w;
              for (int64_t c = 0; c < s.c; ++c) {
                ASSERT_EQ(q.at(n, y, x, c), inside ? Guarded<uint8_t>::kSentinel : 17);
              }
              for (int64_t c = s.c; gap > 0 && c < s.c + gap && x + 1 < s.w; ++c) {
                ASSERT_EQ(q.at(n, y, x, c), Guarded<uint8_t>::kSentinel) << "gap written";
              }
            }
          }
        }
      }
    }
  }
}

#if defined(__SANITIZE_ADDRESS__) || !defined(__x86_64__)
constexpr int64_t kEveryFloatStep = 257;  // sanitizers and emulators are 10 to 100 times slower
#else
constexpr int64_t kEveryFloatStep = 1;
#endif

// All float32 values, all at once on the best ISA; with OCTAVO_SUITE=ci on every ISA and
// 8 pairs.
void compare_every_float(const QuantParams& p) {
  constexpr int64_t kChunk = 1 << 16;
  const auto r = static_cast<float>(1.0 / static_cast<double>(p.scale));
  const auto lo = static_cast<float>(-p.zero_point);
  const auto hi = static_cast<float>(p.max_code - p.zero_point);
  int64_t wrong = 0;
  uint32_t example = 0;
#pragma omp parallel for schedule(dynamic, 64) reduction(+ : wrong)
  for (int64_t chunk = 0; chunk < (int64_t{1} << 32) / kChunk; chunk += kEveryFloatStep) {
    static thread_local std::vector<float> x(kChunk);
    static thread_local std::vector<uint8_t> q(kChunk);
    for (int64_t i = 0; i < kChunk; ++i) {
      const auto bits = static_cast<uint32_t>(chunk * kChunk + i);
      std::memcpy(&x[i], &bits, 4);
    }
    quantize(x.data(), kChunk, p, q.data());
    const float* values = x.data();
    const uint8_t* codes = q.data();
    int32_t different = 0;
    for (int64_t i = 0; i < kChunk; ++i) {
      // The product in float32, the clamp (NaN: lo), and rounding to even by 1.5 * 2^23, which is
      // exact below 2^22. In float32 the compiler makes vectors of it.
      float v = values[i] * r;
      v = v > lo ? v : lo;
      v = v < hi ? v : hi;
      const float rounded = (v + 0x1.8p23f) - 0x1.8p23f;
      different += static_cast<int32_t>(rounded) + p.zero_point != codes[i];
    }
    if (different > 0) {
      wrong += different;
#pragma omp critical
      example = static_cast<uint32_t>(chunk * kChunk);
    }
  }
  EXPECT_EQ(wrong, 0) << "scale " << p.scale << " z " << p.zero_point
                      << ", some in the 2^16 from bits " << std::hex << example;
}

TEST(EveryFloat, QuantizeEqualsTheFormula) {
  std::vector<std::string> isas = testing::available_isas();
  std::vector<QuantParams> params = {{0.02f, 114, 255}};
  if (testing::ci_suite()) {
    params.insert(params.end(), {{1.0f, 0, 255},
                                 {0.0123f, 255, 255},
                                 {kMinScale, 128, 255},
                                 {0x1p-126f, 3, 15},
                                 {3e38f, 8, 15},
                                 {7.7f, 1, 3},
                                 {1e20f, 64, 127}});
  } else {
    isas.resize(1);
  }
  for (const std::string& isa : isas) {
    ASSERT_EQ(set_isa(isa.c_str()), SetIsa::kOk);
    for (const QuantParams& p : params) compare_every_float(p);
  }
  set_isa("");
}

}  // namespace
}  // namespace octavo

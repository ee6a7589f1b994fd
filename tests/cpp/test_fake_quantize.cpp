// Tests fake_quantize.cpp and observe.cpp on every ISA: values, masks and gradients against the
// formulas of csrc/kernels/kernels.h in double arithmetic, sums within the rounding of their terms
// and with the same bits for every ISA and thread count.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "element_test.h"

namespace octavo {
namespace {

using testing::for_each_mode;
using testing::for_each_mode_and_thread_count;
using testing::Guarded;
using testing::nearest;
using testing::Random;

class FakeQuantize : public testing::IsaTest {};
OCTAVO_FOR_EVERY_ISA(FakeQuantize);

constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

bool same(float a, float b) { return (std::isnan(a) && std::isnan(b)) || bits_of(a) == bits_of(b); }

// ---- the types of values, by arithmetic ----

float value_of(FloatType type, const void* values, int64_t i) {
  if (type == FloatType::kF32) return static_cast<const float*>(values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  if (type == FloatType::kBf16) {
    const uint32_t wide = uint32_t{bits} << 16;
    float v;
    std::memcpy(&v, &wide, 4);
    return v;
  }
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size = exponent == 31  ? (fraction != 0 ? NAN : kInfinity)
                      : exponent == 0 ? std::ldexp(fraction, -24)
                                      : std::ldexp(1024 + fraction, exponent - 25);
  return static_cast<float>((bits & 0x8000) != 0 ? -size : size);
}

// A value of the type next to v, ties to even. Halves have 11 significant bits above 2^-14.
uint16_t half_next_to(double v) {
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const double size = std::fabs(v);
  if (std::isnan(v)) return sign | 0x7e00;
  if (size >= 65520.0) return sign | 0x7c00;
  const int exponent = std::max(std::ilogb(std::max(size, 0x1p-20)), -14);
  const auto steps = static_cast<int>(nearest(std::ldexp(size, 10 - exponent)));
  return static_cast<uint16_t>(sign | (steps + ((exponent + 14) << 10)));
}

uint16_t bf16_next_to(float v) {
  const uint32_t bits = bits_of(v);
  if (std::isnan(v)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  const uint32_t low = bits & 0xffff, high = bits >> 16;
  return static_cast<uint16_t>(high + (low > 0x8000 || (low == 0x8000 && (high & 1) != 0)));
}

float rounded_to(FloatType type, float v) {
  if (type == FloatType::kF32) return v;
  const uint16_t bits = type == FloatType::kBf16 ? bf16_next_to(v) : half_next_to(v);
  return value_of(type, &bits, 0);
}

/// Values of one type in guarded memory, seen as float.
class Values {
 public:
  Values(FloatType type, int64_t count)
      : type_(type), bytes_(count * (type == FloatType::kF32 ? 4 : 2)) {}
  void set(int64_t i, float v) {
    if (type_ == FloatType::kF32) {
      std::memcpy(bytes_.data() + 4 * i, &v, 4);
    } else {
      const uint16_t bits = type_ == FloatType::kBf16 ? bf16_next_to(v) : half_next_to(v);
      std::memcpy(bytes_.data() + 2 * i, &bits, 2);
    }
  }
  float operator[](int64_t i) { return value_of(type_, bytes_.data(), i); }
  void* data() { return bytes_.data(); }
  std::vector<uint8_t> copy() const { return bytes_.copy(); }

 private:
  FloatType type_;
  Guarded<uint8_t> bytes_;
};

// ---- the formula ----

struct Expected {
  float t, n, y;
  bool inside, passes, outside;
};

Expected expected(float x, float scale, float zero, int32_t qmin, int32_t qmax, bool relu) {
  const float v = relu && x <= 0.0f ? 0.0f : x;
  const auto r = static_cast<float>(1.0 / static_cast<double>(scale));
  Expected e;
  e.t = static_cast<float>(static_cast<double>(v) * static_cast<double>(r));
  const double lo = qmin - static_cast<double>(zero), hi = qmax - static_cast<double>(zero);
  const double rounded = std::isfinite(e.t) ? nearest(e.t) : static_cast<double>(e.t);
  e.inside = rounded >= lo && rounded <= hi;
  e.outside = rounded < lo || rounded > hi;
  e.passes = e.inside && (!relu || x > 0.0f);
  const double n = std::isnan(e.t) ? NAN : std::min(std::max(rounded, lo), hi) + 0.0;
  e.n = static_cast<float>(n);
  e.y = static_cast<float>(n * static_cast<double>(scale)) + 0.0f;
  return e;
}

struct Shape {
  const char* name;
  int64_t outer, channels, inner, group;
};
const Shape kShapes[] = {
    {"tensor", 1, 1, 1003, 1003}, {"outermost", 1, 5, 77, 77},    {"middle", 3, 7, 37, 37},
    {"innermost", 13, 53, 1, 1},  {"groups", 1, 6, 100, 16},      {"a wide group", 1, 3, 70, 128},
    {"one value", 1, 1, 1, 1},    {"few columns", 40, 3, 1, 1},   {"blocks", 1, 2, 70'000, 70'000},
    {"sixteen", 1, 2, 16, 16},    {"columns of 16", 9, 32, 1, 1}, {"short rows", 4, 9, 9, 9},
};
const FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};

int64_t groups(const Shape& s) { return (s.inner + s.group - 1) / s.group; }
int64_t count(const Shape& s) { return s.outer * s.channels * s.inner; }
int64_t parameter_of(const Shape& s, int64_t i) {
  const int64_t channel = i / s.inner % s.channels;
  return channel * groups(s) + i % s.inner / s.group;
}
// Whether bit i of the mask is set: rows start at bytes.
bool bit(const std::vector<uint8_t>& mask, const MaskShape& shape, int64_t i) {
  const int64_t bytes = (shape.row + 7) / 8, column = i % shape.row;
  return (mask[static_cast<size_t>(i / shape.row * bytes + column / 8)] >> column % 8 & 1) != 0;
}

/// Parameters, values and gradients of one shape, and the steps that name them.
struct Case {
  Case(const Shape& shape, FloatType value_type, bool affine, bool relu, bool learned, bool finite,
       uint64_t seed)
      : s(shape),
        type(value_type),
        x(value_type, count(shape)),
        dy(value_type, count(shape)),
        scale(static_cast<size_t>(shape.channels * groups(shape))),
        zero(scale.size()) {
    Random random(seed);
    for (size_t i = 0; i < scale.size(); ++i) {
      scale[i] = 0.05f + 0.2f * std::fabs(random.real());
      zero[i] = static_cast<float>(random.in(qmin, qmax));
      if (learned && random.below(4) == 0) scale[i] = -scale[i];
      if (learned) zero[i] += 0.4f * random.real();
    }
    for (int64_t i = 0; i < count(shape); ++i) {
      const float v = random.value(3.0f, 0.1f);
      const float safe = std::isfinite(v) && std::fabs(v) < 1e4f ? v : random.real();
      x.set(i, finite ? safe : v);
      dy.set(i, random.real());
    }
    steps = {
        shape.outer, shape.channels, shape.inner, shape.group,  qmin,
        qmax,        relu,           learned,     scale.data(), affine ? zero.data() : nullptr};
  }
  float used_scale(int64_t p) const {
    const float v = scale[static_cast<size_t>(p)];
    return steps.learned ? std::max(std::fabs(v), kMinScale) : v;
  }
  float used_zero(int64_t p) const {
    if (steps.zero_point == nullptr) return 0.0f;
    const double z = nearest(zero[static_cast<size_t>(p)]);
    return static_cast<float>(std::min<double>(std::max<double>(z, qmin), qmax));
  }
  Expected at(int64_t i) {
    const int64_t p = parameter_of(s, i);
    return expected(x[i], used_scale(p), used_zero(p), qmin, qmax, steps.relu);
  }

  static constexpr int32_t qmin = -8, qmax = 7;
  Shape s;
  FloatType type;
  Values x, dy;
  std::vector<float> scale, zero;
  FakeSteps steps;
};

TEST_P(FakeQuantize, ValuesMasksAndGradients) {
  uint64_t seed = 1;
  for (const Shape& s : kShapes) {
    for (const FloatType type : kTypes) {
      for (const bool affine : {false, true}) {
        for (const bool relu : {false, true}) {
          Case c(s, type, affine, relu, false, false, ++seed);
          for (float& z : c.zero) z = static_cast<float>(nearest(z));
          const MaskShape shape = mask_shape(c.steps);
          ASSERT_EQ(shape.rows * shape.row, count(s));
          Values y(type, count(s)), plain(type, count(s)), dx(type, count(s));
          Guarded<uint8_t> mask(shape.rows * ((shape.row + 7) / 8));
          fake_quantize(type, c.x.data(), c.steps, y.data(), mask.data());
          fake_quantize(type, c.x.data(), c.steps, plain.data(), nullptr);
          ASSERT_EQ(y.copy(), plain.copy());
          fake_quantize_backward(type, c.dy.data(), mask.data(), shape, dx.data());
          const std::vector<uint8_t> bits = mask.copy();
          for (int64_t i = 0; i < count(s); ++i) {
            const Expected e = c.at(i);
            ASSERT_TRUE(same(y[i], rounded_to(type, e.y)))
                << s.name << " x " << c.x[i] << " y " << y[i] << " expected " << e.y;
            ASSERT_EQ(bit(bits, shape, i), e.passes) << s.name << " x " << c.x[i];
            ASSERT_TRUE(same(dx[i], e.passes ? c.dy[i] : 0.0f)) << s.name << " x " << c.x[i];
          }
        }
      }
    }
  }
}

TEST_P(FakeQuantize, WatchedValues) {
  uint64_t seed = 70;
  for (const int64_t size : {1, 15, 16, 17, 100, 70'000}) {
    const Shape s{"watched", 1, 1, size, size};
    for (const FloatType type : kTypes) {
      for (const bool relu : {false, true}) {
        Case c(s, type, true, relu, true, true, ++seed);
        Values y(type, size), plain(type, size);
        ASSERT_TRUE(fake_quantize_watched(type, c.x.data(), c.steps, y.data())) << size;
        for (const int64_t at : {int64_t{0}, size / 2, size - 1}) {
          const float kept = c.x[at];
          for (const float bad : {NAN, kInfinity, -kInfinity}) {
            c.x.set(at, bad);
            ASSERT_FALSE(fake_quantize_watched(type, c.x.data(), c.steps, y.data())) << size;
            fake_quantize(type, c.x.data(), c.steps, plain.data(), nullptr);
            ASSERT_EQ(y.copy(), plain.copy()) << size;
          }
          c.x.set(at, kept);
        }
        c.x.set(size - 1, type == FloatType::kF16 ? 65504.0f : 0x1.fep127f);
        ASSERT_TRUE(fake_quantize_watched(type, c.x.data(), c.steps, y.data())) << size;
      }
    }
  }
}

TEST_P(FakeQuantize, CodesGiveBackTheValues) {
  uint64_t seed = 40;
  for (const Shape& s : kShapes) {
    for (const bool affine : {false, true}) {
      for (const bool learned : {false, true}) {
        Case c(s, FloatType::kF32, affine, true, learned, true, ++seed);
        if (!learned) {
          for (float& z : c.zero) z = static_cast<float>(nearest(z));
        }
        Values y(FloatType::kF32, count(s)), again(FloatType::kF32, count(s));
        Guarded<uint8_t> codes(count(s));
        auto* values = static_cast<float*>(y.data());
        fake_quantize(FloatType::kF32, c.x.data(), c.steps, values, nullptr);
        c.steps.relu = false;
        ASSERT_TRUE(fake_quantize_codes(values, c.steps, codes.data())) << s.name;
        fake_quantize_values(codes.data(), c.steps, static_cast<float*>(again.data()));
        ASSERT_EQ(again.copy(), y.copy()) << s.name;
        const std::vector<uint8_t> bytes = codes.copy();
        for (int64_t i = 0; i < count(s); ++i) {
          c.steps.relu = true;
          const Expected e = c.at(i);
          const double code =
              static_cast<double>(e.n) + c.used_zero(parameter_of(s, i)) - Case::qmin;
          ASSERT_EQ(bytes[static_cast<size_t>(i)], code) << s.name << " x " << c.x[i];
        }
        c.steps.relu = false;
        for (const float bad : {NAN, kInfinity}) {
          values[count(s) / 2] = bad;
          ASSERT_FALSE(fake_quantize_codes(values, c.steps, codes.data())) << s.name;
        }
      }
    }
  }
}

TEST_P(FakeQuantize, LearnedSteps) {
  uint64_t seed = 100;
  for (const Shape& s : kShapes) {
    for (const FloatType type : kTypes) {
      for (const bool affine : {false, true}) {
        for (const bool relu : {false, true}) {
          Case c(s, type, affine, relu, true, true, ++seed);
          const auto parameters = static_cast<int64_t>(c.scale.size());
          Values y(type, count(s)), dx(type, count(s));
          Guarded<float> to_scale(parameters), to_zero(affine ? parameters : 0);
          fake_quantize(type, c.x.data(), c.steps, y.data(), nullptr);
          fake_quantize_learned_backward(type, c.dy.data(), c.x.data(), c.steps, 0.3, dx.data(),
                                         to_scale.data(), affine ? to_zero.data() : nullptr);
          std::vector<double> sums(c.scale.size()), sizes(sums), zeros(sums), zero_sizes(sums);
          for (int64_t i = 0; i < count(s); ++i) {
            const Expected e = c.at(i);
            ASSERT_TRUE(same(y[i], rounded_to(type, e.y))) << s.name << " x " << c.x[i];
            ASSERT_TRUE(same(dx[i], e.passes ? c.dy[i] : 0.0f)) << s.name << " x " << c.x[i];
            const auto p = static_cast<size_t>(parameter_of(s, i));
            const double term =
                static_cast<double>(c.dy[i]) * (static_cast<double>(e.n) - (e.inside ? e.t : 0.0));
            sums[p] += term;
            sizes[p] += std::fabs(term);
            zeros[p] += e.outside ? c.dy[i] : 0.0;
            zero_sizes[p] += e.outside ? std::fabs(c.dy[i]) : 0.0;
          }
          for (int64_t p = 0; p < parameters; ++p) {
            const auto i = static_cast<size_t>(p);
            const double sign = c.scale[i] < 0.0f ? -1.0 : 1.0;
            ASSERT_NEAR(to_scale[p], 0.3 * sign * sums[i], 1e-6 * sizes[i] + 1e-30) << s.name;
            if (!affine) continue;
            const double step = c.used_scale(p);
            ASSERT_NEAR(to_zero[p], -0.3 * step * zeros[i], 1e-6 * step * zero_sizes[i] + 1e-30);
          }
        }
      }
    }
  }
}

// Bits of y, dx and both sums for one shape, of the first ISA and one thread.
std::map<std::tuple<std::string, int, bool>, std::vector<std::vector<uint8_t>>> first_seen;

TEST_P(FakeQuantize, SameBitsForEveryIsaThreadCountAndMode) {
  for (const Shape& s :
       {Shape{"tensor", 1, 1, 700'001, 700'001}, Shape{"middle", 9, 5, 9'001, 9'001},
        Shape{"innermost", 3'001, 131, 1, 1}, Shape{"groups", 1, 70, 5'003, 64}}) {
    for (const FloatType type : kTypes) {
      for (const bool relu : {false, true}) {
        if (!testing::ci_suite() && relu != (type == FloatType::kBf16)) continue;
        Case c(s, type, true, relu, true, true, 7);
        const auto parameters = static_cast<int64_t>(c.scale.size());
        for_each_mode_and_thread_count([&](const std::string& mode, int threads) {
          Values y(type, count(s)), dx(type, count(s));
          Guarded<float> to_scale(parameters), to_zero(parameters);
          fake_quantize(type, c.x.data(), c.steps, y.data(), nullptr);
          fake_quantize_learned_backward(type, c.dy.data(), c.x.data(), c.steps, 0.3, dx.data(),
                                         to_scale.data(), to_zero.data());
          const auto bytes = [](Guarded<float>& sums) {
            const auto* first = reinterpret_cast<const uint8_t*>(sums.data());
            return std::vector<uint8_t>(first, first + 4 * sums.size());
          };
          const std::vector<std::vector<uint8_t>> got = {y.copy(), dx.copy(), bytes(to_scale),
                                                         bytes(to_zero)};
          const auto& want =
              first_seen.try_emplace({s.name, static_cast<int>(type), relu}, got).first->second;
          ASSERT_EQ(got, want) << s.name << " " << threads << " threads, " << mode;
        });
      }
    }
  }
}

TEST_P(FakeQuantize, Clipped) {
  for (const FloatType type : kTypes) {
    for (const float alpha : {1.5f, -0.75f}) {
      for (const int64_t n : {0, 1, 15, 16, 333, 70'001}) {
        Random random(9);
        Values x(type, n), dy(type, n), dx(type, n);
        double sum = 0.0, size = 0.0;
        for (int64_t i = 0; i < n; ++i) {
          x.set(i, i % 7 == 0 ? std::fabs(alpha) : random.value(2.0f, 0.1f));
          dy.set(i, random.real());
          if (x[i] >= std::fabs(alpha)) sum += dy[i], size += std::fabs(dy[i]);
        }
        const float got =
            fake_quantize_clipped_backward(type, dy.data(), x.data(), n, alpha, dx.data());
        ASSERT_NEAR(got, alpha < 0 ? -sum : sum, 1e-6 * size);
        for (int64_t i = 0; i < n; ++i) {
          const bool passes = x[i] > 0.0f && x[i] < std::fabs(alpha);
          ASSERT_TRUE(same(dx[i], passes ? dy[i] : 0.0f)) << x[i];
        }
      }
    }
  }
}

TEST_P(FakeQuantize, Levels) {
  Random random(11);
  for (const int64_t levels : {2, 3, 7, 15, 16, 17, 31, 32, 33, 100, 255, 256}) {
    for (const Shape& s : {Shape{"channels", 1, 70, 37, 37}, Shape{"groups", 1, 70, 40, 16}}) {
      for (const FloatType type : kTypes) {
        std::vector<int8_t> table;
        for (int k = 0; k < 2; ++k) {
          std::vector<int8_t> one;
          for (int64_t i = 0; i < levels; ++i) {
            one.push_back(static_cast<int8_t>(levels == 256 ? i - 128 : random.in(-128, 127)));
          }
          std::sort(one.begin(), one.end());
          table.insert(table.end(), one.begin(), one.end());
        }
        Case c(s, type, false, false, true, false, static_cast<uint64_t>(levels));
        for (int64_t i = 0; i < count(s); ++i) {
          // Halfway between codes, and everything else.
          const float scale = c.used_scale(parameter_of(s, i));
          if (random.below(2) == 0)
            c.x.set(i, 0.5f * scale * static_cast<float>(random.in(-260, 260)));
        }
        const FakeLevels rule{table.data(), 2, levels, false};
        Values y(type, count(s)), dx(type, count(s));
        Guarded<float> to_scale(static_cast<int64_t>(c.scale.size()));
        fake_quantize_levels(type, c.x.data(), c.steps, rule, y.data());
        fake_quantize_levels_backward(type, c.dy.data(), c.x.data(), c.steps, rule, 1.0, dx.data(),
                                      to_scale.data());
        std::vector<double> sums(c.scale.size()), sizes(sums);
        for (int64_t i = 0; i < count(s); ++i) {
          const int64_t p = parameter_of(s, i);
          const int8_t* of = table.data() + (i / s.inner >= 64 ? levels : 0);
          const float scale = c.used_scale(p);
          const float t = c.x[i] * static_cast<float>(1.0 / static_cast<double>(scale));
          int64_t best = 0;
          for (int64_t j = 1; j < levels; ++j) {
            // Nearer, in exact arithmetic: distances themselves are rounded.
            if (of[j] > of[best] && 2.0 * static_cast<double>(t) > of[j] + of[best]) best = j;
          }
          const float n = std::isnan(t) ? t : static_cast<float>(of[best]);
          const bool inside = t >= of[0] && t <= of[levels - 1];
          ASSERT_TRUE(same(y[i], rounded_to(type, n * scale)) || (n == 0.0f && y[i] == 0.0f))
              << levels << " levels, t " << t << " y " << y[i] << " level " << n;
          ASSERT_TRUE(same(dx[i], inside ? c.dy[i] : 0.0f)) << t;
          const double term =
              static_cast<double>(c.dy[i]) * (static_cast<double>(n) - (inside ? t : 0.0));
          sums[static_cast<size_t>(p)] += term;
          sizes[static_cast<size_t>(p)] += std::fabs(term);
        }
        for (size_t p = 0; p < sums.size(); ++p) {
          const double sum = c.scale[p] < 0.0f ? -sums[p] : sums[p];
          if (std::isnan(sum)) {
            ASSERT_TRUE(std::isnan(to_scale[static_cast<int64_t>(p)]));
          } else {
            ASSERT_NEAR(to_scale[static_cast<int64_t>(p)], sum, 1e-6 * sizes[p] + 1e-30);
          }
        }
      }
    }
  }
}

// Every bit pattern of both half types.
TEST_P(FakeQuantize, EveryHalf) {
  Random random(13);
  const int parameters = testing::ci_suite() ? 64 : 4;
  for (const FloatType type : {FloatType::kBf16, FloatType::kF16}) {
    Guarded<uint16_t> x(65536), y(65536);
    for (int64_t i = 0; i < 65536; ++i) x[i] = static_cast<uint16_t>(i);
    Guarded<float> wide(65536);
    widen(type, x.data(), 0, 65536, wide.data());
    for (int64_t i = 0; i < 65536; ++i)
      ASSERT_TRUE(same(wide[i], value_of(type, x.data(), i))) << i;
    for (int k = 0; k < parameters; ++k) {
      const float scale =
          std::ldexp(1.0f + std::fabs(random.real()), static_cast<int>(random.in(-20, 10)));
      const auto zero = static_cast<float>(random.in(0, 255));
      const FakeSteps steps{1, 1, 65536, 65536, 0, 255, k % 2 == 1, false, &scale, &zero};
      fake_quantize(type, x.data(), steps, y.data(), nullptr);
      for (int64_t i = 0; i < 65536; ++i) {
        const Expected e = expected(wide[i], scale, zero, 0, 255, steps.relu);
        ASSERT_TRUE(same(value_of(type, y.data(), i), rounded_to(type, e.y)))
            << "x " << wide[i] << " scale " << scale << " zero " << zero;
      }
    }
  }
}

// float32 values: every 4,099th, in the long suite every 31st, and there all of them by
// the first rule on the first ISA (half a minute; all for all would be 20).
TEST_P(FakeQuantize, EveryFloat) {
  const struct {
    float scale, zero;
    int32_t qmin, qmax;
    bool relu;
  } rules[] = {{0.0371f, 114, 0, 255, false}, {1.0f, 0, -8, 7, false},
               {0x1p-126f, 3, 0, 15, false},  {3e38f, 0, -127, 127, false},
               {0.7f, 0, 0, 3, true},         {kMinScale, 255, 0, 255, false},
               {17.3f, 1, 0, 3, true},        {0.5f, 0, -128, 127, false}};
  constexpr int64_t kChunk = 1 << 16;
  std::vector<float> x(kChunk), y(kChunk);
  std::vector<uint8_t> mask(kChunk / 8);
  for (const auto& r : rules) {
    const bool all = &r == rules && GetParam() == testing::available_isas()[0];
    const uint64_t step = !testing::ci_suite() ? 4099 : all ? 1 : 31;
    const FakeSteps steps{1, 1, kChunk, kChunk, r.qmin, r.qmax, r.relu, false, &r.scale, &r.zero};
    const auto inverse =
        static_cast<double>(static_cast<float>(1.0 / static_cast<double>(r.scale)));
    const double lo = r.qmin - r.zero, hi = r.qmax - r.zero;
    for (uint64_t first = 0; first < (uint64_t{1} << 32); first += kChunk * step) {
      for (int64_t i = 0; i < kChunk; ++i) {
        const auto bits = static_cast<uint32_t>(first + static_cast<uint64_t>(i) * step);
        std::memcpy(&x[static_cast<size_t>(i)], &bits, 4);
      }
      fake_quantize(FloatType::kF32, x.data(), steps, y.data(), mask.data());
      int64_t wrong = 0, example = 0;
      for (int64_t i = 0; i < kChunk; ++i) {
        const float v = x[static_cast<size_t>(i)];
        const double used = r.relu && v <= 0.0f ? 0.0 : static_cast<double>(v);
        const auto t = static_cast<double>(static_cast<float>(used * inverse));
        // Ties to even in double, far from its limits after the clamp.
        const double c = std::min(std::max(t, lo - 1), hi + 1);
        const double n = (c + 0x1.8p52) - 0x1.8p52;
        const bool passes = n >= lo && n <= hi && (!r.relu || v > 0.0f);
        const auto want =
            static_cast<float>(std::min(std::max(n, lo), hi) * static_cast<double>(r.scale));
        const bool bit = (mask[static_cast<size_t>(i / 8)] >> i % 8 & 1) != 0;
        const float got = y[static_cast<size_t>(i)];
        const bool fine = std::isnan(v) ? std::isnan(got) && !bit
                                        : bits_of(got) == bits_of(want) && bit == passes;
        if (!fine) ++wrong, example = i;
      }
      ASSERT_EQ(wrong, 0) << "x " << x[static_cast<size_t>(example)] << " y "
                          << y[static_cast<size_t>(example)] << " scale " << r.scale;
    }
  }
}

TEST_P(FakeQuantize, ObservedRanges) {
  Random random(17);
  for (const FloatType type : kTypes) {
    for (const Shape& s : kShapes) {
      if (s.group < s.inner) continue;
      for (const bool relu : {false, true}) {
        Values x(type, count(s));
        std::vector<MinMax> want(static_cast<size_t>(s.channels), MinMax{kInfinity, -kInfinity, 0});
        std::vector<MinMax> got(want);
        for (int64_t i = 0; i < count(s); ++i) {
          x.set(i, random.value(3.0f, 0.1f));
          MinMax& m = want[static_cast<size_t>(i / s.inner % s.channels)];
          if (!std::isfinite(x[i])) {
            ++m.non_finite;
            continue;
          }
          const float v = relu ? std::max(x[i], 0.0f) : x[i];
          m.min = std::min(m.min, v);
          m.max = std::max(m.max, v);
        }
        observed_ranges(type, x.data(), s.outer, s.channels, s.inner, relu, got.data());
        for (size_t c = 0; c < want.size(); ++c) {
          ASSERT_EQ(got[c].min, want[c].min) << s.name;
          ASSERT_EQ(got[c].max, want[c].max) << s.name;
          ASSERT_EQ(got[c].non_finite, want[c].non_finite) << s.name;
        }
      }
    }
  }
}

TEST_P(FakeQuantize, MovingRangesAndTheirSteps) {
  float range[4] = {kInfinity, -1.0f, -kInfinity, 3.0f};
  const MinMax now[2] = {{-2.0f, 5.0f, 0}, {-3.0f, 1.0f, 0}};
  move_range(now, 2, 0.25f, range);
  EXPECT_EQ(std::vector<float>(range, range + 4), (std::vector<float>{-2.0f, -1.5f, 5.0f, 2.5f}));
  const MinMax nothing[2] = {{kInfinity, -kInfinity, 9}, {kInfinity, -kInfinity, 9}};
  move_range(nothing, 2, 0.25f, range);
  EXPECT_EQ(std::vector<float>(range, range + 4), (std::vector<float>{-2.0f, -1.5f, 5.0f, 2.5f}));
  float scale[2], zero[2];
  for_each_mode([&](const std::string& mode) {
    steps_of_ranges(range, 2, {0, 255, false}, scale, zero);
    EXPECT_EQ(scale[0], 7.0f / 255.0f) << mode;
    EXPECT_EQ(zero[0], 73.0f) << mode;  // 2 * 255 / 7 = 72.86
    steps_of_ranges(range, 2, {-8, 7, true}, scale, zero);
    EXPECT_EQ(scale[1], 2.5f / 7.0f) << mode;
    EXPECT_EQ(zero[1], 0.0f) << mode;
    const float empty[2] = {kInfinity, -kInfinity};
    steps_of_ranges(empty, 1, {0, 255, false}, scale, zero);
    EXPECT_EQ(scale[0], kMinScale) << mode;
    EXPECT_EQ(zero[0], 0.0f) << mode;
  });
}

TEST_P(FakeQuantize, ShrunkRangeLosesTheOutlier) {
  std::vector<float> sample(4000);
  Random random(19);
  for (float& v : sample) v = random.real();
  sample[5] = 20.0f;
  sample[6] = NAN;
  const MinMax range = shrunk(sample.data(), 4000, false, {0, 7, false}, {-1.0f, 20.0f, 1});
  EXPECT_EQ(range.min, -1.0f * static_cast<float>(range.max / 20.0f));
  EXPECT_LT(range.max, 20.0f);
  EXPECT_GE(range.max, 4.0f);
}

}  // namespace
}  // namespace octavo

// Packed low-bit weights against an int64 reference that shares no code with the kernels, bit for
// bit, on every ISA of this machine: every width, kind and group size, tails of every dimension,
// extremes, poison around rows, threads, look-ups, round trips.
#include "product_test.h"

namespace octavo::testing {
namespace {

class Lowbit : public IsaTest {};
OCTAVO_FOR_EVERY_ISA(Lowbit);

/// What a case is about.
struct Case {
  int32_t bits;
  LowbitKind kind;
  int64_t group_size;
  int64_t n, k;
};

std::string name_of(const Case& c) {
  return "bits " + std::to_string(c.bits) + " kind " + std::to_string(static_cast<int>(c.kind)) +
         " group " + std::to_string(c.group_size) + " n " + std::to_string(c.n) + " k " +
         std::to_string(c.k) + " isa " + active_isa();
}

/// A weight and its packed form, followed by an unreadable page.
class PackedWeight {
 public:
  PackedWeight(const Case& c, Random& random, LowbitOrder order = LowbitOrder::kColumns,
               int32_t constant = -1)
      : shape(c), groups(lowbit_groups(c.k, c.group_size)) {
    const int64_t codes_count = 1 << c.bits;
    codes.resize(c.n * c.k);
    for (auto& code : codes) {
      const int64_t ends[] = {0, codes_count - 1, 1, codes_count / 2};
      const int64_t pick = random.below(8);
      code = static_cast<uint8_t>(constant >= 0 ? constant
                                  : pick < 4    ? ends[pick]
                                                : random.below(codes_count));
    }
    for (int64_t i = 0; i < c.n * groups; ++i) {
      // Eight bits of mantissa, as bfloat16 has; scales of whole rows have all of them.
      const float s = static_cast<float>(random.in(128, 255)) * 0x1p-15f;
      scale.push_back(c.group_size == 0 ? s * (1.0f + 0.001f * random.real()) : s);
      zero.push_back(static_cast<uint8_t>(random.below(codes_count)));
    }
    for (int64_t i = 0; i < (c.n + 63) / 64 * codes_count; ++i) {
      const int64_t pick = random.below(8);
      levels.push_back(static_cast<int8_t>(pick == 0   ? -128
                                           : pick == 1 ? 127
                                                       : random.in(-128, 127)));
    }
    for (int64_t i = 0; i < c.n; ++i) bias.push_back(3.0f * random.real());
    LowbitWeight w{};
    w.order = order;
    w.kind = c.kind;
    w.bits = c.bits;
    w.out_features = c.n;
    w.in_features = c.k;
    w.group_size = c.group_size;
    w.codes = codes.data();
    w.scale = scale.data();
    w.zero_point = c.kind == LowbitKind::kAffine ? zero.data() : nullptr;
    w.levels = c.kind == LowbitKind::kLevels ? levels.data() : nullptr;
    w.bias = order == LowbitOrder::kColumns ? bias.data() : nullptr;
    bytes = lowbit_bytes(w);
    memory = std::make_unique<Guarded<uint8_t>>(bytes);
    pack_lowbit(w, memory->data());
    EXPECT_TRUE(check_lowbit(memory->data(), bytes));
  }

  int64_t group() const {
    return shape.group_size == 0 ? std::max<int64_t>(1, shape.k) : shape.group_size;
  }
  int64_t level(int64_t o, int64_t i) const {
    const int64_t code = codes[o * shape.k + i];
    switch (shape.kind) {
      case LowbitKind::kAffine:
        return code - zero[o * groups + i / group()];
      case LowbitKind::kLevels:
        return levels[(o / 64 << shape.bits) + code];
      default:
        return code - (1 << (shape.bits - 1));
    }
  }
  const void* data() const { return memory->data(); }

  Case shape;
  int64_t groups, bytes;
  std::vector<uint8_t> codes, zero;
  std::vector<float> scale, bias;
  std::vector<int8_t> levels;
  std::unique_ptr<Guarded<uint8_t>> memory;
};

/// One output by the written rule: exact sums of groups, one fmaf each in ascending order.
float expected_integer(const PackedWeight& w, const std::vector<int64_t>& x, float row_scale,
                       int64_t o) {
  float f = 0.0f;
  for (int64_t g = 0; g < w.groups; ++g) {
    int64_t sum = 0;
    for (int64_t i = g * w.group(); i < std::min(w.shape.k, (g + 1) * w.group()); ++i) {
      sum += x[i] * w.level(o, i);
    }
    f = std::fma(static_cast<float>(sum), w.scale[o * w.groups + g], f);
  }
  return std::fma(f, row_scale, w.bias[o]);
}

float expected_float(const PackedWeight& w, const float* x, int64_t o) {
  float f = 0.0f;
  for (int64_t g = 0; g < w.groups; ++g) {
    float sum = 0.0f;
    for (int64_t i = g * w.group(); i < std::min(w.shape.k, (g + 1) * w.group()); ++i) {
      sum = std::fma(x[i], static_cast<float>(w.level(o, i)), sum);
    }
    f = std::fma(sum, w.scale[o * w.groups + g], f);
  }
  return f + w.bias[o];
}

/// Codes less their zero point, by the written rule of dynamic rows.
std::vector<int64_t> centred_codes(const float* x, int64_t k, const QuantParams& p) {
  std::vector<int64_t> codes;
  const float r = 1.0f / p.scale;
  for (int64_t i = 0; i < k; ++i) {
    const double z = p.zero_point;
    codes.push_back(clamped(x[i] * r, -z, p.max_code - z));
  }
  return codes;
}

QuantParams row_params(const float* x, int64_t k) {
  float low = 0.0f, high = 0.0f;
  for (int64_t i = 0; i < k; ++i) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
  }
  return params_of_range(low, high, 255);
}

enum class Activations { kDynamic, kStatic, kFloat };

void check(const Case& c, int64_t m, Random& random, Activations activations,
           int32_t constant = -1) {
  SCOPED_TRACE(name_of(c) + " m " + std::to_string(m) + " activations " +
               std::to_string(static_cast<int>(activations)));
  const PackedWeight w(c, random, LowbitOrder::kColumns, constant);
  const int64_t ldx = c.k + random.below(3), ldy = c.n + random.below(3);
  Guarded<float> x(m * c.k == 0 ? 0 : (m - 1) * ldx + c.k);
  Guarded<float> y(m * c.n == 0 ? 0 : (m - 1) * ldy + c.n);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = NAN;  // gaps between rows are poison
  for (int64_t i = 0; i < m; ++i) {
    const float spread = i % 3 == 0 ? 1e-3f : i % 3 == 1 ? 5.0f : 1e4f;
    for (int64_t j = 0; j < c.k; ++j) {
      const float v = spread * random.real();
      x[i * ldx + j] = i % 4 == 3 ? std::fabs(v) : i % 4 == 2 ? -std::fabs(v) : v;
    }
  }
  const QuantParams fixed{0.03f, 77, activations == Activations::kStatic ? 200 : 255};
  reset_integer_macs();
  if (activations == Activations::kFloat) {
    linear_lowbit_float(x.data(), m, ldx, w.data(), y.data(), ldy);
  } else if (activations == Activations::kStatic) {
    linear_lowbit_static(x.data(), m, ldx, fixed, w.data(), y.data(), ldy);
  } else {
    linear_lowbit(x.data(), m, ldx, w.data(), y.data(), ldy);
  }
  ASSERT_EQ(integer_macs(), activations == Activations::kFloat ? 0 : m * c.k * c.n);
  for (int64_t i = 0; i < m; ++i) {
    const float* row = x.data() + i * ldx;
    const QuantParams p = activations == Activations::kStatic ? fixed : row_params(row, c.k);
    const std::vector<int64_t> codes = centred_codes(row, c.k, p);
    for (int64_t o = 0; o < c.n; ++o) {
      const float expected = activations == Activations::kFloat
                                 ? expected_float(w, row, o)
                                 : expected_integer(w, codes, p.scale, o);
      ASSERT_EQ(y[i * ldy + o], expected) << "row " << i << " column " << o;
    }
    for (int64_t o = c.n; c.n > 0 && o < ldy && i + 1 < m; ++o) {
      uint32_t bits;
      std::memcpy(&bits, &y[i * ldy + o], 4);
      ASSERT_EQ(bits, 0xa5a5a5a5u) << "gap after row " << i;
    }
  }
}

constexpr LowbitKind kKinds[] = {LowbitKind::kSymmetric, LowbitKind::kAffine, LowbitKind::kLevels};

TEST_P(Lowbit, EveryWidthKindAndGroup) {
  Random random(71);
  int count = 0;
  for (int32_t bits = 2; bits <= 8; ++bits) {
    for (const LowbitKind kind : kKinds) {
      if (kind == LowbitKind::kAffine && bits == 8) continue;
      for (const int64_t group : {0, 16, 32, 48, 64, 128, 256}) {
        for (const int64_t k : {16, 100, 256, 300}) {
          for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 9, 16, 33}) {
            if (!ci_suite() && count++ % 9 != 0) continue;
            const Case c{bits, kind, group, random.in(1, 200), k};
            check(c, m, random, static_cast<Activations>(random.below(3)));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST_P(Lowbit, RandomShapes) {
  Random random(72);
  const int cases = ci_suite() ? 4000 : 250;
  for (int i = 0; i < cases; ++i) {
    const auto bits = static_cast<int32_t>(random.in(2, 8));
    LowbitKind kind = kKinds[random.below(3)];
    if (bits == 8 && kind == LowbitKind::kAffine) kind = LowbitKind::kLevels;
    const Case c{bits, kind, 16 * random.below(17), random.in(1, 150), random.in(1, 400)};
    check(c, random.in(1, 20), random, static_cast<Activations>(random.below(3)));
    if (HasFatalFailure()) return;
  }
}

TEST_P(Lowbit, ManyGroupsInChunks) {
  Random random(73);
  for (const int32_t bits : {2, 3, 4, 6}) {
    for (const int64_t group : {32, 128, 0}) {
      for (const auto activations : {Activations::kDynamic, Activations::kFloat}) {
        for (const int64_t m : {1, 5, 20}) {
          check({bits, LowbitKind::kSymmetric, group, 80, 1500}, m, random, activations);
          check({bits, LowbitKind::kLevels, group, 70, 1100}, m, random, activations);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(Lowbit, PanelsBeyondL2InChunks) {
  Random random(83);
  for (const auto activations : {Activations::kDynamic, Activations::kFloat}) {
    check({4, LowbitKind::kSymmetric, 128, 70, 11000}, 20, random, activations);
    check({3, LowbitKind::kAffine, 256, 33, 17000}, 13, random, activations);
    check({8, LowbitKind::kSymmetric, 96, 70, 6000}, 20, random, activations);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Lowbit, LargestCodesNeitherSaturateNorWrap) {
  Random random(74);
  for (int32_t bits = 2; bits <= 8; ++bits) {
    for (const int32_t code : {0, (1 << bits) - 1}) {
      for (const int64_t m : {1, 3, 8}) {
        for (const int64_t group : {0, 256}) {
          check({bits, LowbitKind::kSymmetric, group, 20, 3000}, m, random, Activations::kDynamic,
                code);
          check({bits, LowbitKind::kLevels, group, 20, 3000}, m, random, Activations::kDynamic,
                code);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(Lowbit, LongestRowsAreExact) {
  Random random(75);
  for (const int32_t bits : {2, 3, 4, 8}) {
    for (const int64_t m : {1, 7}) {
      check({bits, LowbitKind::kLevels, 0, 3, 65793}, m, random, Activations::kDynamic, 1);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Lowbit, EmptySizes) {
  Random random(76);
  for (const auto activations : {Activations::kDynamic, Activations::kFloat}) {
    for (const int64_t group : {0, 32}) {
      check({4, LowbitKind::kSymmetric, group, 7, 5}, 0, random, activations);
      for (const int64_t rows : {3, 40}) {
        check({4, LowbitKind::kSymmetric, group, 7, 0}, rows, random, activations);
        check({4, LowbitKind::kLevels, group, 0, 5}, rows, random, activations);
      }
    }
  }
}

TEST_P(Lowbit, BatchThreadsAndModesDoNotChangeBits) {
  Random random(77);
  const int64_t m = 70, k = 300, n = 400;
  for (const LowbitKind kind : kKinds) {
    const PackedWeight w({3, kind, 64, n, k}, random);
    std::vector<float> x(m * k), expected(m * n), expected_f(m * n);
    for (auto& v : x) v = 4.0f * random.real();
    for (int64_t i = 0; i < m; ++i) {
      linear_lowbit(x.data() + i * k, 1, k, w.data(), expected.data() + i * n, n);
      linear_lowbit_float(x.data() + i * k, 1, k, w.data(), expected_f.data() + i * n, n);
    }
    for_each_mode_and_thread_count([&](const std::string& mode, int) {
      std::vector<float> y(m * n);
      linear_lowbit(x.data(), m, k, w.data(), y.data(), n);
      EXPECT_EQ(y, expected) << mode;
      linear_lowbit_float(x.data(), m, k, w.data(), y.data(), n);
      EXPECT_EQ(y, expected_f) << mode;
    });
  }
}

TEST_P(Lowbit, NotFiniteValuesStayInTheirRow) {
  Random random(78);
  const int64_t k = 100, n = 70;
  const PackedWeight w({4, LowbitKind::kLevels, 32, n, k}, random);
  for (const int64_t m : {3, 12}) {
    std::vector<float> x(m * k), clean(m * n), y(m * n);
    for (auto& v : x) v = random.real();
    linear_lowbit(x.data(), m, k, w.data(), clean.data(), n);
    x[3] = NAN, x[5] = std::numeric_limits<float>::infinity();
    linear_lowbit(x.data(), m, k, w.data(), y.data(), n);
    EXPECT_EQ(std::vector<float>(y.begin() + n, y.end()),
              std::vector<float>(clean.begin() + n, clean.end()));
    linear_lowbit_float(x.data(), m, k, w.data(), y.data(), n);
    for (int64_t i = n; i < m * n; ++i) EXPECT_TRUE(std::isfinite(y[i]));
    for (int64_t i = 0; i < n; ++i) EXPECT_TRUE(std::isnan(y[i]));
  }
}

TEST_P(Lowbit, LookUps) {
  Random random(79);
  for (int32_t bits = 2; bits <= 8; ++bits) {
    for (const LowbitKind kind : kKinds) {
      if (kind == LowbitKind::kAffine && bits == 8) continue;
      for (const int64_t group : {0, 16, 64, 256}) {
        for (const int64_t k : {0, 1, 15, 64, 100, 333}) {
          const PackedWeight w({bits, kind, group, 130, k}, random, LowbitOrder::kRows);
          SCOPED_TRACE(name_of(w.shape));
          std::vector<int64_t> indices;
          for (int64_t i = 0; i < 9; ++i) indices.push_back(random.below(130));
          indices.push_back(129);
          Guarded<float> y(k * 10);
          embedding_lowbit(indices.data(), 10, w.data(), y.data());
          for (int64_t i = 0; i < 10; ++i) {
            for (int64_t j = 0; j < k; ++j) {
              const int64_t o = indices[i];
              const float scale = w.scale[o * w.groups + j / w.group()];
              ASSERT_EQ(y[i * k + j], static_cast<float>(w.level(o, j)) * scale);
            }
          }
        }
      }
    }
  }
}

TEST(LowbitPack, GivesBackWhatWasPacked) {
  Random random(80);
  for (int i = 0; i < 400; ++i) {
    const auto bits = static_cast<int32_t>(random.in(2, 8));
    LowbitKind kind = kKinds[random.below(3)];
    if (bits == 8 && kind == LowbitKind::kAffine) kind = LowbitKind::kSymmetric;
    const auto order = random.below(2) == 0 ? LowbitOrder::kRows : LowbitOrder::kColumns;
    const Case c{bits, kind, 16 * random.below(17), random.in(0, 150), random.in(0, 300)};
    SCOPED_TRACE(name_of(c));
    const PackedWeight w(c, random, order);
    std::vector<uint8_t> codes(w.codes.size()), zero(w.zero.size());
    std::vector<float> scale(w.scale.size()), bias(w.bias.size()), weight(w.codes.size());
    std::vector<int8_t> levels(w.levels.size());
    unpack_lowbit(w.data(), codes.data(), scale.data(), zero.data(), levels.data(), bias.data());
    dequantize_lowbit(w.data(), weight.data());
    const bool by_level = kind == LowbitKind::kLevels && bits > 4 && order == LowbitOrder::kColumns;
    for (int64_t o = 0; o < c.n; ++o) {
      for (int64_t k = 0; k < c.k; ++k) {
        const int64_t at = o * c.k + k;
        if (by_level) {
          const int8_t* table = w.levels.data() + (o / 64 << bits);
          ASSERT_EQ(table[codes[at]], table[w.codes[at]]);
          ASSERT_LE(codes[at], w.codes[at]);
        } else {
          ASSERT_EQ(codes[at], w.codes[at]);
        }
        ASSERT_EQ(weight[at],
                  static_cast<float>(w.level(o, k)) * w.scale[o * w.groups + k / w.group()]);
      }
    }
    EXPECT_EQ(scale, w.scale);
    if (kind == LowbitKind::kAffine) {
      EXPECT_EQ(zero, w.zero);
    }
    if (kind == LowbitKind::kLevels) {
      EXPECT_EQ(levels, w.levels);
    }
    if (order == LowbitOrder::kColumns) {
      EXPECT_EQ(bias, w.bias);
    }
  }
}

TEST(LowbitPack, FourBitsInGroupsOf128TakeAtMost4Point3) {
  Random random(81);
  for (const int64_t k : {768, 3072, 4096}) {
    const PackedWeight w({4, LowbitKind::kSymmetric, 128, 768, k}, random);
    EXPECT_LE(static_cast<double>(w.bytes) * 8.0, 4.3 * 768.0 * static_cast<double>(k));
  }
}

TEST(LowbitPack, DamagedHeadersAreRefused) {
  Random random(82);
  const PackedWeight w({4, LowbitKind::kLevels, 32, 70, 100}, random);
  std::vector<uint8_t> bytes(static_cast<size_t>(w.bytes));
  int refused = 0;
  for (size_t at = 0; at < sizeof(LowbitHeader); ++at) {
    std::memcpy(bytes.data(), w.data(), bytes.size());
    bytes[at] ^= 0xff;
    EXPECT_FALSE(check_lowbit(bytes.data(), w.bytes)) << "byte " << at;
    ++refused;
  }
  EXPECT_EQ(refused, static_cast<int>(sizeof(LowbitHeader)));
  std::memcpy(bytes.data(), w.data(), bytes.size());
  EXPECT_FALSE(check_lowbit(bytes.data(), w.bytes - 1));
  EXPECT_FALSE(check_lowbit(bytes.data(), 10));
}

}  // namespace
}  // namespace octavo::testing

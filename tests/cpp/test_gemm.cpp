// Linear layers, dynamic and static, against the int64 reference, bit for bit, on every ISA of this
// machine: tails of every dimension, extremes, long sums, poison beyond K, threads.
#include "product_test.h"

namespace octavo::testing {
namespace {

class Gemm : public IsaTest {};
OCTAVO_FOR_EVERY_ISA(Gemm);

/// Reference of one dynamic row: parameters and codes by the written rule, in double and float as
/// stated there.
struct Row {
  QuantParams params;
  std::vector<int64_t> codes;
};
Row quantized_row(const float* x, int64_t k) {
  float low = 0.0f, high = 0.0f;
  for (int64_t i = 0; i < k; ++i) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
  }
  Row row{params_of_range(low, high, 255), {}};
  const float r = 1.0f / row.params.scale;
  for (int64_t i = 0; i < k; ++i) {
    const double z = row.params.zero_point;
    row.codes.push_back(clamped(x[i] * r, -z, 255.0 - z) + row.params.zero_point);
  }
  return row;
}

void check_dynamic(int64_t m, int64_t k, int64_t n, Random& random, int32_t weight = 1000) {
  SCOPED_TRACE("m " + std::to_string(m) + " k " + std::to_string(k) + " n " + std::to_string(n) +
               " isa " + active_isa());
  const Layer layer({n, k, 1, 1, 1, 8}, random, weight);
  Packed panel(layer);
  const int64_t ldx = k + random.below(3), ldy = n + random.below(3);
  Guarded<float> x(m * k == 0 ? 0 : (m - 1) * ldx + k), y(m * n == 0 ? 0 : (m - 1) * ldy + n);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = NAN;  // gaps between rows are poison
  for (int64_t i = 0; i < m; ++i) {
    const float spread = i % 3 == 0 ? 1e-3f : i % 3 == 1 ? 5.0f : 1e4f;
    for (int64_t j = 0; j < k; ++j) {
      x[i * ldx + j] = i % 4 == 3 ? std::fabs(spread * random.real()) : spread * random.real();
    }
  }
  reset_integer_macs();
  linear_dynamic(x.data(), m, k, ldx, panel.data(), y.data(), ldy);
  ASSERT_EQ(integer_macs(), m * k * n);
  for (int64_t i = 0; i < m; ++i) {
    const Row row = quantized_row(x.data() + i * ldx, k);
    for (int64_t o = 0; o < n; ++o) {
      int64_t sum = 0;
      for (int64_t j = 0; j < k; ++j)
        sum += (row.codes[j] - row.params.zero_point) * layer.codes[o * k + j];
      const float scale = row.params.scale * layer.scale[o];
      ASSERT_EQ(y[i * ldy + o], std::fma(static_cast<float>(sum), scale, layer.bias[o]))
          << "row " << i << " column " << o;
    }
    for (int64_t o = n; n > 0 && o < ldy && i + 1 < m; ++o) {
      uint32_t bits;
      std::memcpy(&bits, &y[i * ldy + o], 4);
      ASSERT_EQ(bits, 0xa5a5a5a5u) << "gap after row " << i;
    }
  }
}

TEST_P(Gemm, TailsOfEveryDimension) {
  Random random(61);
  const int step = ci_suite() ? 1 : 7;
  int count = 0;
  for (int64_t m = 1; m <= 33; ++m) {
    for (int64_t n = 1; n <= 33; ++n) {
      for (int64_t k = 1; k <= 130; k += 1 + (k > 70 ? 13 : 0)) {
        if (count++ % (13 * step) != 0) continue;
        check_dynamic(m, k, n, random);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Gemm, NamedShapes) {
  Random random(62);
  const int64_t shapes[][3] = {{1, 1, 1},     {1, 512, 100}, {1, 4096, 96}, {2, 100, 200},
                               {15, 33, 65},  {16, 64, 64},  {28, 48, 80},  {29, 1024, 48},
                               {64, 63, 129}, {127, 65, 17}, {200, 16, 16}, {5, 2048, 16},
                               {3, 8192, 33}};
  for (const auto& [m, k, n] : shapes) {
    check_dynamic(m, k, n, random);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Gemm, RandomShapes) {
  Random random(63);
  const int cases = ci_suite() ? 10000 : 400;
  for (int i = 0; i < cases; ++i) {
    check_dynamic(random.in(1, 40), random.in(1, 150), random.in(1, 100), random);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Gemm, LargestWeightsNeitherSaturateNorWrap) {
  Random random(64);
  for (const int32_t weight : {-128, -127, 127}) {
    for (const int64_t k : {1, 2, 64, 515, 3000}) {
      check_dynamic(3, k, 20, random, weight);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Gemm, LongSumsAreExact) {
  Random random(65);
  for (const int64_t k : {65792, 65793, 65794, 70001}) {
    for (const int32_t weight : {-128, 127, 1000}) {
      check_dynamic(2, k, 3, random, weight);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Gemm, EmptySizes) {
  Random random(66);
  check_dynamic(0, 5, 7, random);
  check_dynamic(3, 0, 7, random);
  check_dynamic(3, 5, 0, random);
}

TEST_P(Gemm, NotFiniteValuesStayInTheirRow) {
  Random random(67);
  const int64_t k = 40, n = 20;
  const Layer layer({n, k, 1, 1, 1, 8}, random);
  Packed panel(layer);
  std::vector<float> x(3 * k), clean(n), y(3 * n);
  for (auto& v : x) v = random.real();
  linear_dynamic(x.data() + k, 1, k, k, panel.data(), clean.data(), n);
  x[3] = NAN, x[5] = std::numeric_limits<float>::infinity(),
  x[2 * k] = -std::numeric_limits<float>::infinity();
  linear_dynamic(x.data(), 3, k, k, panel.data(), y.data(), n);
  EXPECT_EQ(std::vector<float>(y.begin() + n, y.begin() + 2 * n), clean);
}

TEST_P(Gemm, BatchThreadsAndModesDoNotChangeBits) {
  Random random(68);
  const int64_t m = 70, k = 300, n = 700;
  const Layer layer({n, k, 1, 1, 1, 8}, random);
  Packed panel(layer);
  std::vector<float> x(m * k), expected(m * n);
  for (auto& v : x) v = 4.0f * random.real();
  for (int64_t i = 0; i < m; ++i) {
    linear_dynamic(x.data() + i * k, 1, k, k, panel.data(), expected.data() + i * n, n);
  }
  for_each_mode_and_thread_count([&](const std::string& mode, int) {
    std::vector<float> y(m * n);
    linear_dynamic(x.data(), m, k, k, panel.data(), y.data(), n);
    EXPECT_EQ(y, expected) << mode;
  });
}

}  // namespace
}  // namespace octavo::testing

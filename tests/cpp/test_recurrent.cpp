// Tests recurrent.cpp on every ISA: one step against exp and tanh in double, ends of the range, and
// steps in place.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "element_test.h"

namespace octavo {
namespace {

using testing::Guarded;
using testing::Random;

class RecurrentOf : public testing::IsaTest {};
OCTAVO_FOR_EVERY_ISA(RecurrentOf);

constexpr RecurrentMode kModes[] = {RecurrentMode::kLstm, RecurrentMode::kGru, RecurrentMode::kTanh,
                                    RecurrentMode::kRelu};

double sigmoid_of(double x) { return 1.0 / (1.0 + std::exp(-x)); }

struct Next {
  double h, c;
};

/// Unit `i` of a row.
Next expected(RecurrentMode mode, int64_t width, const float* x, const float* h, const float* state,
              int64_t i) {
  const auto sum = [&](int64_t gate) {
    return static_cast<double>(x[gate * width + i] + h[gate * width + i]);
  };
  if (mode == RecurrentMode::kLstm) {
    const double c = sigmoid_of(sum(1)) * state[i] + sigmoid_of(sum(0)) * std::tanh(sum(2));
    return {sigmoid_of(sum(3)) * std::tanh(c), c};
  }
  if (mode == RecurrentMode::kGru) {
    const double n = std::tanh(x[2 * width + i] + sigmoid_of(sum(0)) * h[2 * width + i]);
    return {n + sigmoid_of(sum(1)) * (state[i] - n), 0.0};
  }
  return {mode == RecurrentMode::kTanh ? std::tanh(sum(0)) : std::max(sum(0), 0.0), 0.0};
}

TEST_P(RecurrentOf, EveryWidthInPlace) {
  Random random(1);
  const int64_t rows = 2;
  for (const RecurrentMode mode : kModes) {
    const bool has_c = mode == RecurrentMode::kLstm;
    for (int64_t width = 0; width <= 70; ++width) {
      const int64_t count = gates_of(mode) * width;
      Guarded<float> x(rows * count), h(rows * count), state(rows * width);
      Guarded<float> next_h(rows * width), next_c(rows * width), place(rows * width);
      for (int64_t i = 0; i < rows * count; ++i) {
        x[i] = 4.0f * random.real();
        h[i] = 4.0f * random.real();
      }
      for (int64_t i = 0; i < rows * width; ++i) place[i] = state[i] = 2.0f * random.real();
      recurrent_cell(mode, rows, width, x.data(), h.data(), state.data(), next_h.data(),
                     has_c ? next_c.data() : nullptr);
      Guarded<float> other(rows * width);
      recurrent_cell(mode, rows, width, x.data(), h.data(), place.data(),
                     has_c ? other.data() : place.data(), has_c ? place.data() : nullptr);
      for (int64_t i = 0; i < rows * width; ++i) {
        const int64_t row = i / width;
        const Next wanted = expected(mode, width, x.data() + row * count, h.data() + row * count,
                                     state.data() + row * width, i % width);
        ASSERT_NEAR(next_h[i], wanted.h, 1e-6 + 1e-6 * std::abs(wanted.h)) << width;
        ASSERT_EQ(next_h[i], has_c ? other[i] : place[i]) << width;
        if (has_c) {
          ASSERT_NEAR(next_c[i], wanted.c, 1e-6 + 1e-6 * std::abs(wanted.c)) << width;
          ASSERT_EQ(next_c[i], place[i]) << width;
        }
      }
    }
  }
}

TEST_P(RecurrentOf, SmallAndLargeValues) {
  const float zero = 0.0f, largest = std::numeric_limits<float>::max();
  const float infinity = std::numeric_limits<float>::infinity();
  const auto tangent = [&](float x) {
    float y = 0.0f;
    recurrent_cell(RecurrentMode::kTanh, 1, 1, &x, &zero, nullptr, &y, nullptr);
    return y;
  };
  // Relative, on both sides of where the formula changes.
  for (const float x : {1e-30f, 1e-4f, 0.1f, 0.624f, 0.625f, 0.626f, 1.0f, 5.0f, 9.0f, 20.0f}) {
    EXPECT_NEAR(tangent(x) / std::tanh(static_cast<double>(x)), 1.0, 4e-7) << x;
    EXPECT_EQ(tangent(-x), -tangent(x)) << x;
  }
  for (const float x : {50.0f, 1e10f, largest, infinity}) {
    EXPECT_EQ(tangent(x), 1.0f) << x;
    EXPECT_EQ(tangent(-x), -1.0f) << x;
  }
  EXPECT_TRUE(std::isnan(tangent(std::nanf(""))));
  // GRU with n = 0 gives sigmoid(z) * state.
  const float one = 1.0f;
  for (const float z : {-infinity, -largest, -100.0f, -80.0f, -20.0f, 0.0f, 20.0f, largest}) {
    const float x[3] = {0.0f, z, 0.0f}, h[3] = {};
    float y = 0.0f;
    recurrent_cell(RecurrentMode::kGru, 1, 1, x, h, &one, &y, nullptr);
    const double wanted = sigmoid_of(std::max(z, -87.0f));
    EXPECT_NEAR(y / wanted, 1.0, 4e-7) << z;
  }
}

}  // namespace
}  // namespace octavo

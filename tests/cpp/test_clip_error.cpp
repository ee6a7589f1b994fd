// Tests clip_error.cpp on every ISA: against pow in double, and the bits of the scalar row.
#include <gtest/gtest.h>

#include <cmath>

#include "element_test.h"

namespace octavo {
namespace {

using testing::for_each_thread_count;
using testing::Guarded;
using testing::Random;

class ClipErrorOf : public testing::IsaTest {};
OCTAVO_FOR_EVERY_ISA(ClipErrorOf);

double expected_error(const ClipErrors& e, int64_t r, int64_t s) {
  const float scale = e.scale[r * e.scales + s], inverse = 1.0f / scale;
  double total = 0.0;
  for (int64_t c = 0; c < e.columns; ++c) {
    const float x = e.x[r * e.columns + c];
    const float q = std::nearbyint(std::min(std::max(x * inverse, e.low[r]), e.high[r]));
    const double off = std::abs(static_cast<double>(x - q * scale)) / e.unit[r];
    const double importance = e.importance == nullptr ? 1.0 : e.importance[r * e.columns + c];
    total += importance * std::pow(off, 2.4);
  }
  return total;
}

TEST_P(ClipErrorOf, EveryLength) {
  Random random(1);
  const int64_t rows = 2, scales = 3;
  for (int64_t columns = 0; columns <= 70; ++columns) {
    Guarded<float> x(rows * columns), importance(rows * columns), scale(rows * scales);
    Guarded<float> unit(rows), low(rows), high(rows);
    for (int64_t i = 0; i < rows * columns; ++i) {
      x[i] = random.real();
      importance[i] = std::abs(random.real());
    }
    for (int64_t i = 0; i < rows * scales; ++i) scale[i] = 0.001f * static_cast<float>(i + 1);
    for (int64_t r = 0; r < rows; ++r) {
      unit[r] = 1.0f;
      low[r] = -static_cast<float>(random.below(128));
      high[r] = static_cast<float>(random.below(128));
    }
    for (const bool has_importance : {false, true}) {
      const float* weighted = has_importance ? importance.data() : nullptr;
      const ClipErrors errors{x.data(),     weighted,    rows,       columns,    scales,
                              scale.data(), unit.data(), low.data(), high.data()};
      double got[rows * scales];
      clip_error(errors, got);
      for (int64_t i = 0; i < rows * scales; ++i) {
        const double expected = expected_error(errors, i / scales, i % scales);
        ASSERT_NEAR(got[i], expected, 2e-5 * expected + 1e-12) << columns;
      }
    }
  }
}

}  // namespace
}  // namespace octavo

// Ranges and histograms of float runs: the specification in plain loops. Called by minmax.cpp,
// quantize.cpp and the dynamic products through the table; calls nothing.
#include "../../kernel_table.h"

namespace octavo::scalar {
namespace {

// False for NaN too.
bool finite(float x) { return __builtin_fabsf(x) <= __FLT_MAX__; }

void range_f32(const float* x, int64_t count, float* min, float* max) {
  float lo = *min, hi = *max;
  for (int64_t i = 0; i < count; ++i) {
    lo = x[i] < lo ? x[i] : lo;
    hi = x[i] > hi ? x[i] : hi;
  }
  *min = lo;
  *max = hi;
}

void minmax_columns_f32(const float* x, int64_t rows, int64_t row_stride, int64_t columns,
                        float* min, float* max, int64_t* non_finite) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      const float v = x[r * row_stride + c];
      if (!finite(v)) {
        ++non_finite[c];
        continue;
      }
      min[c] = v < min[c] ? v : min[c];
      max[c] = v > max[c] ? v : max[c];
    }
  }
}

void minmax_f32(const float* x, int64_t count, float* min, float* max, int64_t* non_finite) {
  minmax_columns_f32(x, count, 1, 1, min, max, non_finite);
}

// In double x / 2^exponent is exact: float32 has bits of 2^-149 .. 2^127 and double of 2^-1074 ..
// 2^1023, so any exponent in [-800, 800] leaves room.
void histogram_f32(const float* x, int64_t count, int32_t exponent, int64_t first,
                   int64_t bin_count, int64_t* bins) {
  const double factor = __builtin_ldexp(1.0, -exponent);
  for (int64_t i = 0; i < count; ++i) {
    if (!finite(x[i])) continue;
    const double bin =
        __builtin_floor(static_cast<double>(x[i]) * factor) - static_cast<double>(first);
    const double last = static_cast<double>(bin_count - 1);
    ++bins[bin < 0.0 ? 0 : bin > last ? bin_count - 1 : static_cast<int64_t>(bin)];
  }
}

}  // namespace

void fill_minmax(ElementTable& t) {
  t.range_f32 = range_f32;
  t.minmax_f32 = minmax_f32;
  t.minmax_columns_f32 = minmax_columns_f32;
  t.histogram_f32 = histogram_f32;
}

}  // namespace octavo::scalar

// Ranges of float runs, four floats a vector. Called by minmax.cpp, quantize.cpp and the dynamic
// products through the table; calls nothing. isa/scalar/minmax.cpp says what every result is;
// histograms are its own.
#include <arm_neon.h>

#include "../../kernel_table.h"

namespace octavo::neon_dotprod {
namespace {

/// Comparisons with NaN are false, so NaN never enters.
struct Ends {
  float32x4_t lo, hi;
  Ends(float min, float max) : lo(vdupq_n_f32(min)), hi(vdupq_n_f32(max)) {}
  void add(float32x4_t v, uint32x4_t use) {
    lo = vbslq_f32(vandq_u32(use, vcltq_f32(v, lo)), v, lo);
    hi = vbslq_f32(vandq_u32(use, vcgtq_f32(v, hi)), v, hi);
  }
};

inline uint32x4_t finite(float32x4_t v) { return vcaleq_f32(v, vdupq_n_f32(__FLT_MAX__)); }

inline bool finite(float v) { return __builtin_fabsf(v) <= __FLT_MAX__; }

void range_f32(const float* x, int64_t count, float* min, float* max) {
  Ends a(*min, *max), b(*min, *max);
  const uint32x4_t all = vdupq_n_u32(~0u);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    a.add(vld1q_f32(x + i), all);
    b.add(vld1q_f32(x + i + 4), all);
  }
  for (; i < count; ++i) a.add(vdupq_n_f32(x[i]), all);
  *min = vminvq_f32(vminq_f32(a.lo, b.lo));
  *max = vmaxvq_f32(vmaxq_f32(a.hi, b.hi));
}

void minmax_f32(const float* x, int64_t count, float* min, float* max, int64_t* non_finite) {
  Ends ends(*min, *max);
  int64_t good = 0;
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const float32x4_t v = vld1q_f32(x + i);
    const uint32x4_t use = finite(v);
    ends.add(v, use);
    good += vaddvq_u32(vshrq_n_u32(use, 31));
  }
  for (; i < count; ++i) {
    ends.add(vdupq_n_f32(x[i]), finite(vdupq_n_f32(x[i])));
    good += finite(x[i]);
  }
  *min = vminvq_f32(ends.lo);
  *max = vmaxvq_f32(ends.hi);
  *non_finite += count - good;
}

void minmax_columns_f32(const float* x, int64_t rows, int64_t row_stride, int64_t columns,
                        float* min, float* max, int64_t* non_finite) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * row_stride;
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      const float32x4_t v = vld1q_f32(row + c);
      const uint32x4_t use = finite(v);
      const float32x4_t lo = vld1q_f32(min + c), hi = vld1q_f32(max + c);
      vst1q_f32(min + c, vbslq_f32(vandq_u32(use, vcltq_f32(v, lo)), v, lo));
      vst1q_f32(max + c, vbslq_f32(vandq_u32(use, vcgtq_f32(v, hi)), v, hi));
      if (vminvq_u32(use) == 0) {
        for (int64_t k = 0; k < 4; ++k) non_finite[c + k] += !finite(row[c + k]);
      }
    }
    for (; c < columns; ++c) {
      if (!finite(row[c])) {
        ++non_finite[c];
        continue;
      }
      min[c] = row[c] < min[c] ? row[c] : min[c];
      max[c] = row[c] > max[c] ? row[c] : max[c];
    }
  }
}

}  // namespace

void fill_minmax(ElementTable& t) {
  t.range_f32 = range_f32;
  t.minmax_f32 = minmax_f32;
  t.minmax_columns_f32 = minmax_columns_f32;
}

}  // namespace octavo::neon_dotprod

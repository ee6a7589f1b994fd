// Ranges and histograms of float runs, 8 floats a vector. Called by minmax.cpp, quantize.cpp and
// the dynamic products through the table; calls nothing. isa/scalar/minmax.cpp says what every
// result is.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx2 {
namespace {

inline __m256 absolute(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

// All ones where finite; zero for NaN.
inline __m256 finite(__m256 x) {
  return _mm256_cmp_ps(absolute(x), _mm256_set1_ps(__FLT_MAX__), _CMP_LE_OQ);
}

inline bool scalar_finite(float x) { return __builtin_fabsf(x) <= __FLT_MAX__; }

// Extrema in four vectors, so that their latency is hidden.
struct Extrema {
  Extrema(float min, float max) {
    for (int k = 0; k < 4; ++k) {
      lo[k] = _mm256_set1_ps(min);
      hi[k] = _mm256_set1_ps(max);
    }
  }
  void store(float* min, float* max) const {
    alignas(32) float values[8];
    _mm256_store_ps(values,
                    _mm256_min_ps(_mm256_min_ps(lo[0], lo[1]), _mm256_min_ps(lo[2], lo[3])));
    for (const float v : values) *min = v < *min ? v : *min;
    _mm256_store_ps(values,
                    _mm256_max_ps(_mm256_max_ps(hi[0], hi[1]), _mm256_max_ps(hi[2], hi[3])));
    for (const float v : values) *max = v > *max ? v : *max;
  }
  __m256 lo[4], hi[4];
};

void range_f32(const float* x, int64_t count, float* min, float* max) {
  Extrema e(*min, *max);
  int64_t i = 0;
  // min_ps and max_ps give their second operand for NaN, so NaN never enters.
  for (; i + 32 <= count; i += 32) {
    for (int k = 0; k < 4; ++k) {
      const __m256 v = _mm256_loadu_ps(x + i + 8 * k);
      e.lo[k] = _mm256_min_ps(v, e.lo[k]);
      e.hi[k] = _mm256_max_ps(v, e.hi[k]);
    }
  }
  e.store(min, max);
  for (; i < count; ++i) {
    *min = x[i] < *min ? x[i] : *min;
    *max = x[i] > *max ? x[i] : *max;
  }
}

// Widens `ends` by 32 * `steps` values if all of them are finite; false otherwise.
inline bool add_finite(const float* x, int64_t steps, Extrema& ends) {
  Extrema next = ends;
  const __m256 zero = _mm256_setzero_ps();
  __m256 sum[4] = {zero, zero, zero, zero};
  for (int64_t i = 0; i < steps; ++i, x += 32) {
    for (int k = 0; k < 4; ++k) {
      const __m256 v = _mm256_loadu_ps(x + 8 * k);
      next.lo[k] = _mm256_min_ps(v, next.lo[k]);
      next.hi[k] = _mm256_max_ps(v, next.hi[k]);
      // 0 times a finite value is 0, times any other NaN.
      sum[k] = _mm256_fmadd_ps(v, zero, sum[k]);
    }
  }
  const __m256 all = _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3]));
  if (_mm256_movemask_ps(_mm256_cmp_ps(all, all, _CMP_UNORD_Q)) != 0) return false;
  ends = next;
  return true;
}

void minmax_f32(const float* x, int64_t count, float* min, float* max, int64_t* non_finite) {
  const __m256 infinity = _mm256_set1_ps(__builtin_inff());
  Extrema e(*min, *max);
  int64_t good = 0;
  int64_t i = 0;
  constexpr int64_t kSteps = 128;  // of 32 values, after which they are checked to be finite
  while (i + 32 <= count) {
    const int64_t whole = (count - i) / 32, steps = whole < kSteps ? whole : kSteps;
    if (add_finite(x + i, steps, e)) {
      i += 32 * steps;
      good += 32 * steps;
      continue;
    }
    for (const int64_t end = i + 32 * steps; i < end; i += 8) {
      const __m256 v = _mm256_loadu_ps(x + i);
      const __m256 use = finite(v);
      e.lo[0] = _mm256_min_ps(_mm256_blendv_ps(infinity, v, use), e.lo[0]);
      e.hi[0] = _mm256_max_ps(_mm256_blendv_ps(-infinity, v, use), e.hi[0]);
      good += __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(use)));
    }
  }
  e.store(min, max);
  *non_finite += i - good;
  for (; i < count; ++i) {
    if (!scalar_finite(x[i])) {
      ++*non_finite;
      continue;
    }
    *min = x[i] < *min ? x[i] : *min;
    *max = x[i] > *max ? x[i] : *max;
  }
}

void minmax_columns_f32(const float* x, int64_t rows, int64_t row_stride, int64_t columns,
                        float* min, float* max, int64_t* non_finite) {
  constexpr float kInfinity = __builtin_inff();
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * row_stride;
    int64_t c = 0;
    for (; c + 8 <= columns; c += 8) {
      const __m256 v = _mm256_loadu_ps(row + c);
      const __m256 use = finite(v);
      const __m256 lo = _mm256_blendv_ps(_mm256_set1_ps(kInfinity), v, use);
      const __m256 hi = _mm256_blendv_ps(_mm256_set1_ps(-kInfinity), v, use);
      _mm256_storeu_ps(min + c, _mm256_min_ps(lo, _mm256_loadu_ps(min + c)));
      _mm256_storeu_ps(max + c, _mm256_max_ps(hi, _mm256_loadu_ps(max + c)));
      for (unsigned bad = ~_mm256_movemask_ps(use) & 0xffu; bad != 0; bad &= bad - 1) {
        ++non_finite[c + __builtin_ctz(bad)];
      }
    }
    for (; c < columns; ++c) {
      if (!scalar_finite(row[c])) {
        ++non_finite[c];
        continue;
      }
      min[c] = row[c] < min[c] ? row[c] : min[c];
      max[c] = row[c] > max[c] ? row[c] : max[c];
    }
  }
}

// Bins of four doubles; exact as in the scalar kernel.
inline __m128i bin_of(__m128 x, __m256d factor, __m256d first, __m256d last) {
  const __m256d floored = _mm256_floor_pd(_mm256_mul_pd(_mm256_cvtps_pd(x), factor));
  const __m256d bin = _mm256_max_pd(_mm256_sub_pd(floored, first), _mm256_setzero_pd());
  return _mm256_cvttpd_epi32(_mm256_min_pd(bin, last));
}

void histogram_f32(const float* x, int64_t count, int32_t exponent, int64_t first,
                   int64_t bin_count, int64_t* bins) {
  const __m256d factor = _mm256_set1_pd(__builtin_ldexp(1.0, -exponent));
  const __m256d vfirst = _mm256_set1_pd(static_cast<double>(first));
  const __m256d vlast = _mm256_set1_pd(static_cast<double>(bin_count - 1));
  // Indices of a block go through memory: extracting them from registers costs more than everything
  // else.
  constexpr int64_t kBlock = 256;
  alignas(32) uint32_t index[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = count - begin < kBlock ? count - begin : kBlock;
    for (int64_t i = 0; i < size; i += 4) {
      __m128 v;
      if (size - i >= 4) {
        v = _mm_loadu_ps(x + begin + i);
      } else {
        alignas(16) float part[4] = {};
        __builtin_memcpy(part, x + begin + i, static_cast<size_t>(size - i) * sizeof(float));
        v = _mm_load_ps(part);
      }
      _mm_store_si128(reinterpret_cast<__m128i*>(index + i), bin_of(v, factor, vfirst, vlast));
    }
    __asm__ volatile("" : : "r"(index) : "memory");
    for (int64_t i = 0; i < size; ++i) {
      if (scalar_finite(x[begin + i])) ++bins[index[i]];
    }
  }
}

}  // namespace

void fill_minmax(ElementTable& t) {
  t.range_f32 = range_f32;
  t.minmax_f32 = minmax_f32;
  t.minmax_columns_f32 = minmax_columns_f32;
  t.histogram_f32 = histogram_f32;
}

}  // namespace octavo::avx2

// Ranges and histograms of float runs, 16 floats a vector. Called by minmax.cpp, quantize.cpp and
// the dynamic products through the table; calls nothing. isa/scalar/minmax.cpp says what every
// result is.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx512_vnni {
namespace {

inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffffu : (1u << count) - 1u);
}

// False for NaN.
inline __mmask16 finite(__m512 x) {
  return _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(__FLT_MAX__), _CMP_LE_OQ);
}

void range_f32(const float* x, int64_t count, float* min, float* max) {
  __m512 lo[4], hi[4];
  for (int k = 0; k < 4; ++k) {
    lo[k] = _mm512_set1_ps(*min);
    hi[k] = _mm512_set1_ps(*max);
  }
  int64_t i = 0;
  // min_ps and max_ps give their second operand for NaN, so NaN never enters.
  for (; i + 64 <= count; i += 64) {
    for (int k = 0; k < 4; ++k) {
      const __m512 v = _mm512_loadu_ps(x + i + 16 * k);
      lo[k] = _mm512_min_ps(v, lo[k]);
      hi[k] = _mm512_max_ps(v, hi[k]);
    }
  }
  for (; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    lo[0] = _mm512_min_ps(_mm512_mask_loadu_ps(lo[0], mask, x + i), lo[0]);
    hi[0] = _mm512_max_ps(_mm512_mask_loadu_ps(hi[0], mask, x + i), hi[0]);
  }
  *min =
      _mm512_reduce_min_ps(_mm512_min_ps(_mm512_min_ps(lo[0], lo[1]), _mm512_min_ps(lo[2], lo[3])));
  *max =
      _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(hi[0], hi[1]), _mm512_max_ps(hi[2], hi[3])));
}

struct Ends {
  __m512 lo[4], hi[4];
};

/// Widens `ends` by 64 * `steps` values if all of them are finite; false otherwise.
inline bool add_finite(const float* x, int64_t steps, Ends& ends) {
  Ends next = ends;
  const __m512 zero = _mm512_setzero_ps();
  __m512 sum[4] = {zero, zero, zero, zero};
  for (int64_t i = 0; i < steps; ++i, x += 64) {
    for (int k = 0; k < 4; ++k) {
      const __m512 v = _mm512_loadu_ps(x + 16 * k);
      next.lo[k] = _mm512_min_ps(v, next.lo[k]);
      next.hi[k] = _mm512_max_ps(v, next.hi[k]);
      // 0 times a finite value is 0, times any other NaN.
      sum[k] = _mm512_fmadd_ps(v, zero, sum[k]);
    }
  }
  const __m512 all = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
  if (_mm512_cmp_ps_mask(all, all, _CMP_UNORD_Q) != 0) return false;
  ends = next;
  return true;
}

void minmax_f32(const float* x, int64_t count, float* min, float* max, int64_t* non_finite) {
  Ends ends;
  for (int k = 0; k < 4; ++k) {
    ends.lo[k] = _mm512_set1_ps(*min);
    ends.hi[k] = _mm512_set1_ps(*max);
  }
  int64_t good = 0;
  int64_t i = 0;
  constexpr int64_t kSteps = 64;  // of 64 values, after which they are checked to be finite
  while (i + 64 <= count) {
    const int64_t whole = (count - i) / 64, steps = whole < kSteps ? whole : kSteps;
    if (add_finite(x + i, steps, ends)) {
      i += 64 * steps;
      good += 64 * steps;
      continue;
    }
    for (const int64_t end = i + 64 * steps; i < end; i += 16) {
      const __m512 v = _mm512_loadu_ps(x + i);
      const __mmask16 use = finite(v);
      ends.lo[0] = _mm512_mask_min_ps(ends.lo[0], use, v, ends.lo[0]);
      ends.hi[0] = _mm512_mask_max_ps(ends.hi[0], use, v, ends.hi[0]);
      good += __builtin_popcount(use);
    }
  }
  for (; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
    const auto use = static_cast<__mmask16>(finite(v) & mask);
    ends.lo[0] = _mm512_mask_min_ps(ends.lo[0], use, v, ends.lo[0]);
    ends.hi[0] = _mm512_mask_max_ps(ends.hi[0], use, v, ends.hi[0]);
    good += __builtin_popcount(use);
  }
  *min = _mm512_reduce_min_ps(
      _mm512_min_ps(_mm512_min_ps(ends.lo[0], ends.lo[1]), _mm512_min_ps(ends.lo[2], ends.lo[3])));
  *max = _mm512_reduce_max_ps(
      _mm512_max_ps(_mm512_max_ps(ends.hi[0], ends.hi[1]), _mm512_max_ps(ends.hi[2], ends.hi[3])));
  *non_finite += count - good;
}

void minmax_columns_f32(const float* x, int64_t rows, int64_t row_stride, int64_t columns,
                        float* min, float* max, int64_t* non_finite) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; c += 16) {
      const __mmask16 mask = first_lanes(columns - c);
      const __m512 v = _mm512_maskz_loadu_ps(mask, x + r * row_stride + c);
      const auto use = static_cast<__mmask16>(finite(v) & mask);
      const __m512 lo = _mm512_maskz_loadu_ps(mask, min + c);
      const __m512 hi = _mm512_maskz_loadu_ps(mask, max + c);
      _mm512_mask_storeu_ps(min + c, use, _mm512_min_ps(v, lo));
      _mm512_mask_storeu_ps(max + c, use, _mm512_max_ps(v, hi));
      for (unsigned bad = mask & ~use; bad != 0; bad &= bad - 1)
        ++non_finite[c + __builtin_ctz(bad)];
    }
  }
}

// Bins of eight doubles; exact as in the scalar kernel. Fewer than 2^31 bins.
inline __m256i bin_of(__m256 x, __m512d factor, __m512d first, __m512d last) {
  const __m512d scaled = _mm512_mul_pd(_mm512_cvtps_pd(x), factor);
  const __m512d floored = _mm512_roundscale_pd(scaled, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __m512d bin = _mm512_sub_pd(floored, first);
  return _mm512_cvttpd_epi32(_mm512_min_pd(_mm512_max_pd(bin, _mm512_setzero_pd()), last));
}

void histogram_f32(const float* x, int64_t count, int32_t exponent, int64_t first,
                   int64_t bin_count, int64_t* bins) {
  const __m512d factor = _mm512_set1_pd(__builtin_ldexp(1.0, -exponent));
  const __m512d vfirst = _mm512_set1_pd(static_cast<double>(first));
  const __m512d vlast = _mm512_set1_pd(static_cast<double>(bin_count - 1));
  // Indices of a block go through memory: extracting them from registers costs more than everything
  // else.
  constexpr int64_t kBlock = 256;
  alignas(64) uint32_t index[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = count - begin < kBlock ? count - begin : kBlock;
    int64_t kept = 0;
    for (int64_t i = 0; i < size; i += 16) {
      const __mmask16 mask = first_lanes(size - i);
      const __m512 v = _mm512_maskz_loadu_ps(mask, x + begin + i);
      const auto use = static_cast<__mmask16>(finite(v) & mask);
      const __m256i lo = bin_of(_mm512_castps512_ps256(v), factor, vfirst, vlast);
      const __m256i hi = bin_of(_mm512_extractf32x8_ps(v, 1), factor, vfirst, vlast);
      const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
      // kept <= i, so the 16 lanes stay within the block.
      _mm512_storeu_si512(index + kept, _mm512_maskz_compress_epi32(use, both));
      kept += __builtin_popcount(use);
    }
    __asm__ volatile("" : : "r"(index) : "memory");
    for (int64_t i = 0; i < kept; ++i) ++bins[index[i]];
  }
}

}  // namespace

void fill_minmax(ElementTable& t) {
  t.range_f32 = range_f32;
  t.minmax_f32 = minmax_f32;
  t.minmax_columns_f32 = minmax_columns_f32;
  t.histogram_f32 = histogram_f32;
}

}  // namespace octavo::avx512_vnni

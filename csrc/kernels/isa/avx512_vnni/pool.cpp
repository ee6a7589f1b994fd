// Maximum and average over windows of codes, 64 or 32 channels at a time. Called by pool.cpp
// through the table; calls nothing. isa/scalar/pool.cpp says what every result is.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx512_vnni {
namespace {

inline __mmask64 first_bytes(int64_t count) {
  return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1;
}

// kRows x kCols taps known at compile time (0: taken from the window), so that small windows are
// unrolled.
template <int kRows, int kCols>
void max_windows(const uint8_t* x, const Window& window, const PixelRun& run, uint8_t* out) {
  const int64_t rows = kRows > 0 ? kRows : window.rows, cols = kCols > 0 ? kCols : window.cols;
  for (int64_t p = 0; p < run.pixels; ++p) {
    for (int64_t c = 0; c < run.channels; c += 64) {
      const __mmask64 mask = first_bytes(run.channels - c);
      __m512i largest = _mm512_setzero_si512();
      for (int64_t i = 0; i < rows; ++i) {
        const uint8_t* tap = x + p * run.in_step + i * window.row_step + c;
        for (int64_t j = 0; j < cols; ++j, tap += window.col_step) {
          largest = _mm512_max_epu8(largest, _mm512_maskz_loadu_epi8(mask, tap));
        }
      }
      _mm512_mask_storeu_epi8(out + p * run.out_step + c, mask, largest);
    }
  }
}

void max_windows_u8(const uint8_t* x, const Window& window, const PixelRun& run, uint8_t* out) {
  if (window.rows == 3 && window.cols == 3) {
    max_windows<3, 3>(x, window, run, out);
  } else if (window.rows == 2 && window.cols == 2) {
    max_windows<2, 2>(x, window, run, out);
  } else {
    max_windows<0, 0>(x, window, run, out);
  }
}

inline void store16(uint8_t* out, __mmask16 mask, __m512i sum, const AverageRule& rule) {
  const __m512 v =
      _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(rule.m), _mm512_set1_ps(rule.offset));
  // max_ps and min_ps give their second operand for NaN.
  const __m512 clamped =
      _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(rule.lo)), _mm512_set1_ps(rule.hi));
  _mm512_mask_cvtepi32_storeu_epi8(out, mask, _mm512_cvtps_epi32(clamped));
}

template <int kRows, int kCols>
void average_windows(const uint8_t* x, const Window& window, const PixelRun& run,
                     const AverageRule& rule, uint8_t* out) {
  const int64_t rows = kRows > 0 ? kRows : window.rows, cols = kCols > 0 ? kCols : window.cols;
  // 257 codes of 255 fill 16 bits exactly.
  constexpr int64_t kTaps16 = 257;
  for (int64_t p = 0; p < run.pixels; ++p) {
    for (int64_t c = 0; c < run.channels; c += 32) {
      const auto mask = static_cast<__mmask32>(first_bytes(run.channels - c));
      __m512i lo = _mm512_set1_epi32(rule.start), hi = lo;
      __m512i sum = _mm512_setzero_si512();
      auto spill = [&] {
        lo = _mm512_add_epi32(lo, _mm512_cvtepu16_epi32(_mm512_castsi512_si256(sum)));
        hi = _mm512_add_epi32(hi, _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(sum, 1)));
        sum = _mm512_setzero_si512();
      };
      int64_t free = kTaps16;
      for (int64_t i = 0; i < rows; ++i) {
        const uint8_t* tap = x + p * run.in_step + i * window.row_step + c;
        for (int64_t j = 0; j < cols;) {
          const int64_t end = cols - j < free ? cols : j + free;
          free -= end - j;
          for (; j < end; ++j, tap += window.col_step) {
            const __m256i bytes = _mm256_maskz_loadu_epi8(mask, tap);
            sum = _mm512_add_epi16(sum, _mm512_cvtepu8_epi16(bytes));
          }
          if (free == 0) {
            spill();
            free = kTaps16;
          }
        }
      }
      spill();
      uint8_t* to = out + p * run.out_step + c;
      store16(to, static_cast<__mmask16>(mask), lo, rule);
      if (mask > 0xffff) store16(to + 16, static_cast<__mmask16>(mask >> 16), hi, rule);
    }
  }
}

void average_windows_u8(const uint8_t* x, const Window& window, const PixelRun& run,
                        const AverageRule& rule, uint8_t* out) {
  if (window.rows == 2 && window.cols == 2) {
    average_windows<2, 2>(x, window, run, rule, out);
  } else if (window.rows == 3 && window.cols == 3) {
    average_windows<3, 3>(x, window, run, rule, out);
  } else {
    average_windows<0, 0>(x, window, run, rule, out);
  }
}

}  // namespace

void fill_pool(ElementTable& t) {
  t.max_windows_u8 = max_windows_u8;
  t.average_windows_u8 = average_windows_u8;
}

}  // namespace octavo::avx512_vnni

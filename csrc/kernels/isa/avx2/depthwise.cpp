// Depthwise convolutions on AVX2: rows are interleaved as pairs of 16-bit values (rows 0 and 2,
// rows 1 and 3) and multiplied by vpmaddwd, exact for all codes. Filled into the row by table.cpp;
// called by product_depthwise.cpp.
#include "ymm_depthwise.h"

namespace octavo::avx2 {
namespace {

struct WideningTaps {
  static constexpr int64_t kColumnBytes = 256;  // 32 channels x 4 rows x 2 bytes
  static constexpr int64_t kWeightBytes = 256;

  static inline __attribute__((always_inline)) void interleave(__m256i r0, __m256i r1, __m256i r2,
                                                               __m256i r3, uint8_t* out) {
    pairs(r0, r2, out);
    pairs(r1, r3, out + 128);
  }
  /// Vector j of rows 0 and 2, then of rows 1 and 3: even and odd bytes of the packed weights.
  static void prepare(const int8_t* weights, uint8_t* out) {
    for (int j = 0; j < 4; ++j) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + 64 * j));
      store(out + 32 * j, _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8));
      store(out + 128 + 32 * j, _mm256_srai_epi16(v, 8));
    }
  }
  /// Pair sums reach 2 * 255 * 128 = 65,280: exact in 32 bits.
  static inline __attribute__((always_inline)) void add(__m256i (&sum)[4], const uint8_t* column,
                                                        const uint8_t* w) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sum[j] = _mm256_add_epi32(sum[j], _mm256_madd_epi16(at(column + 32 * j), at(w + 32 * j)));
      sum[j] = _mm256_add_epi32(sum[j],
                                _mm256_madd_epi16(at(column + 128 + 32 * j), at(w + 128 + 32 * j)));
    }
  }

 private:
  static inline __attribute__((always_inline)) __m256i at(const uint8_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  }
  static inline __attribute__((always_inline)) void store(uint8_t* p, __m256i v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), v);
  }
  static inline __attribute__((always_inline)) void pairs(__m256i a, __m256i b, uint8_t* out) {
    const __m256i zero = _mm256_setzero_si256();
    const __m256i a_low = _mm256_unpacklo_epi8(a, zero), a_high = _mm256_unpackhi_epi8(a, zero);
    const __m256i b_low = _mm256_unpacklo_epi8(b, zero), b_high = _mm256_unpackhi_epi8(b, zero);
    store(out, _mm256_unpacklo_epi16(a_low, b_low));
    store(out + 32, _mm256_unpackhi_epi16(a_low, b_low));
    store(out + 64, _mm256_unpacklo_epi16(a_high, b_high));
    store(out + 96, _mm256_unpackhi_epi16(a_high, b_high));
  }
};

}  // namespace

void fill_depthwise(GemmTable& table) {
  table.depthwise_u8s8_u8 = depthwise_u8s8_u8<WideningTaps>;
  table.depthwise_u8s8_f32 = depthwise_u8s8_f32<WideningTaps>;
}

}  // namespace octavo::avx2

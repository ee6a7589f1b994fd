// Depthwise convolutions by the VEX form of vpdpbusd: four rows interleaved into dwords, 32
// channels at a time. Filled into the row by table.cpp; called by product_depthwise.cpp.
#include "../avx2/ymm_depthwise.h"

namespace octavo::avx_vnni {
namespace {

struct VnniTaps {
  static constexpr int64_t kColumnBytes = 128;  // 32 channels x 4 rows
  static constexpr int64_t kWeightBytes = 128;

  static inline __attribute__((always_inline)) void interleave(__m256i r0, __m256i r1, __m256i r2,
                                                               __m256i r3, uint8_t* out) {
    const __m256i low01 = _mm256_unpacklo_epi8(r0, r1), high01 = _mm256_unpackhi_epi8(r0, r1);
    const __m256i low23 = _mm256_unpacklo_epi8(r2, r3), high23 = _mm256_unpackhi_epi8(r2, r3);
    store(out, _mm256_unpacklo_epi16(low01, low23));
    store(out + 32, _mm256_unpackhi_epi16(low01, low23));
    store(out + 64, _mm256_unpacklo_epi16(high01, high23));
    store(out + 96, _mm256_unpackhi_epi16(high01, high23));
  }
  static void prepare(const int8_t* weights, uint8_t* out) {
    for (int j = 0; j < 4; ++j) {
      store(out + 32 * j, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + 64 * j)));
    }
  }
  static inline __attribute__((always_inline)) void add(__m256i (&sum)[4], const uint8_t* column,
                                                        const uint8_t* w) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(column + 32 * j));
      const __m256i b = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32 * j));
#if defined(OCTAVO_EVEX)
      __asm__("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sum[j]) : "x"(a), "x"(b));
#else
      __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum[j]) : "x"(a), "x"(b));
#endif
    }
  }

 private:
  static inline __attribute__((always_inline)) void store(uint8_t* p, __m256i v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), v);
  }
};

}  // namespace

void fill_depthwise(GemmTable& table) {
  table.depthwise_u8s8_u8 = depthwise_u8s8_u8<VnniTaps>;
  table.depthwise_u8s8_f32 = depthwise_u8s8_f32<VnniTaps>;
}

}  // namespace octavo::avx_vnni

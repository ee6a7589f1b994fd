// The dot product of AVX2, which has no instruction for it, exact for all codes: even and odd bytes
// are widened to 16 bits and multiplied in pairs by vpmaddwd. (vpmaddubsw would take a third less
// time, but adds pairs of u8 x s8 products with saturation at 32,767, and 255 * 127 * 2 is more.)
// Included by this folder's gemm.cpp and lowbit.cpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace octavo::avx2 {
namespace {

alignas(32) constexpr int64_t kEvenBytes[4] = {0x00ff00ff00ff00ff, 0x00ff00ff00ff00ff,
                                               0x00ff00ff00ff00ff, 0x00ff00ff00ff00ff};

struct WideningDot {
  static constexpr int kPixels = 4;  // 8 accumulators, 4 weights, 2 activations, 1 product
  struct B {
    __m256i even, odd;
  };
  struct A {
    __m256i even, odd;
  };
  static inline __attribute__((always_inline)) B load_b(const int8_t* p) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
  }
  static inline __attribute__((always_inline)) A broadcast(const uint8_t* p) {
    int32_t bytes;
    __builtin_memcpy(&bytes, p, 4);
    const __m256i v = _mm256_set1_epi32(bytes);
    // Forces the mask to be read from memory: in a register it would be the seventeenth.
    __m256i even;
    __asm__("vpand %2, %1, %0" : "=x"(even) : "x"(v), "m"(kEvenBytes));
    return {even, _mm256_srli_epi16(v, 8)};
  }
  /// Pair sums reach 2 * 255 * 128 = 65,280: exact in 32 bits.
  static inline __attribute__((always_inline)) void add(__m256i& sum, const A& a, const B& b) {
    __m256i product;
    __asm__ volatile(
        "vpmaddwd %3, %2, %1\n\t"
        "vpaddd %1, %0, %0\n\t"
        "vpmaddwd %5, %4, %1\n\t"
        "vpaddd %1, %0, %0"
        : "+x"(sum), "=&x"(product)
        : "x"(a.even), "x"(b.even), "x"(a.odd), "x"(b.odd));
  }
};

}  // namespace
}  // namespace octavo::avx2

// The dot product of AVX-VNNI. Included by this folder's gemm.cpp and lowbit.cpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace octavo::avx_vnni {
namespace {

struct VnniDot {
  static constexpr int kPixels = 6;  // 12 accumulators, 2 weights, 1 activation
  using A = __m256i;
  using B = __m256i;
  static inline __attribute__((always_inline)) B load_b(const int8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static inline __attribute__((always_inline)) A broadcast(const uint8_t* p) {
    int32_t bytes;
    __builtin_memcpy(&bytes, p, 4);
    return _mm256_set1_epi32(bytes);
  }
  /// Inline assembly for the reason given in avx512_vnni/gemm.cpp. OCTAVO_EVEX: tests on CPUs that
  /// have the instruction in its AVX-512 encoding only.
  static inline __attribute__((always_inline)) void add(__m256i& sum, const A& a, const B& b) {
#if defined(OCTAVO_EVEX)
    __asm__("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#endif
  }
};

}  // namespace
}  // namespace octavo::avx_vnni

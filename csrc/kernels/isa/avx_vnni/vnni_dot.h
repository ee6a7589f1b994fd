// The dot product of AVX-VNNI. Included by this folder's gemm.cpp and lowbit.cpp.
#pragma once

#include "../avx2/ymm_bytes.h"

namespace octavo::avx_vnni {
namespace {

struct VnniDot : YmmBytes {
  static constexpr int kPixels = 6;  // 12 accumulators, 2 weights, 1 activation
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

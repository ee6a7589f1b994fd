// Operands of dot products that read bytes directly from memory: what VnniDot and SplitDot share.
// Each unit that includes this file has its own copy, compiled with its own flags (unnamed
// namespace).
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace octavo {
namespace {

struct YmmBytes {
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
};

}  // namespace
}  // namespace octavo

// A panel in the form that vpmaddubsw multiplies exactly. That instruction adds pairs of u8 x s8
// products with saturation, which is exact while the two weights of a pair sum to -128..128 (255 *
// 128 = 32,640). Few pairs of trained weights do not: their weights are halved, and the other
// halves go to a separate list, each entry a vector of 8 columns x 4 weights, which is multiplied
// at the end. Made from the panel for each band of pixels, so that panels are the same on all x86
// ISAs. Included by split_dot.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace octavo::avx2 {
namespace {

/// The part of a split panel for 16 columns. quads: steps of 4 codes, over all runs.
struct SplitGroup {
  int64_t* count;      // [2]: entries of each half of 8 columns
  int8_t* main;        // [quads][16 columns][4]
  int8_t* rest[2];     // [count][8 columns][4]
  int32_t* quad[2];    // [count]: which step it belongs to, ascending
  int64_t* offset[2];  // [count]: activations' place; written for each job
};

constexpr int64_t split_group_bytes(int64_t quads) { return 64 + (quads * 152 + 63) / 64 * 64; }

inline SplitGroup split_group(uint8_t* split, int64_t quads, int64_t group) {
  uint8_t* p = split + group * split_group_bytes(quads);
  SplitGroup g;
  g.count = reinterpret_cast<int64_t*>(p);
  g.main = reinterpret_cast<int8_t*>(p + 64);
  g.rest[0] = g.main + quads * 64;
  g.rest[1] = g.rest[0] + quads * 32;
  g.offset[0] = reinterpret_cast<int64_t*>(g.rest[1] + quads * 32);
  g.offset[1] = g.offset[0] + quads;
  g.quad[0] = reinterpret_cast<int32_t*>(g.offset[1] + quads);
  g.quad[1] = g.quad[0] + quads;
  return g;
}

inline int64_t split_bytes(int64_t width, int64_t k) {
  return width / 16 * split_group_bytes(k / 4);
}

inline void split_panel(const int8_t* b, int64_t width, int64_t k, uint8_t* to) {
  const int64_t quads = k / 4;
  const __m256i ones = _mm256_set1_epi8(1), most = _mm256_set1_epi16(128);
  const __m256i sign = _mm256_set1_epi8(-128), quarter = _mm256_set1_epi8(64);
  const __m256i zero = _mm256_setzero_si256();
  // In the order of the panel, so that it is read as one stream.
  constexpr int64_t kHalves = 8;
  const int64_t halves = width / 8;
  int8_t* main[kHalves];
  int8_t* rest_end[kHalves];
  int32_t* quad_end[kHalves];
  for (int64_t h = 0; h < halves; ++h) {
    const SplitGroup g = split_group(to, quads, h / 2);
    main[h] = g.main + h % 2 * 32;
    rest_end[h] = g.rest[h % 2];
    quad_end[h] = g.quad[h % 2];
  }
  for (int64_t q = 0; q < quads; ++q) {
    for (int64_t h = 0; h < halves; ++h, b += 32) {
      const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
      const __m256i sums = _mm256_abs_epi16(_mm256_maddubs_epi16(ones, w));
      const __m256i large = _mm256_cmpgt_epi16(sums, most);
      // Half of each weight, -64..64: the mean of w + 128 and 0, rounded up, less 64.
      const __m256i half_w =
          _mm256_sub_epi8(_mm256_avg_epu8(_mm256_xor_si256(w, sign), zero), quarter);
      const __m256i rest = _mm256_and_si256(large, half_w);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(main[h] + q * 64), _mm256_sub_epi8(w, rest));
      // Without a branch, which would often be mispredicted: an entry that does not count is
      // overwritten.
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(rest_end[h]), rest);
      *quad_end[h] = static_cast<int32_t>(q);
      const int64_t counts = 1 - _mm256_testz_si256(large, large);
      rest_end[h] += 32 * counts;
      quad_end[h] += counts;
    }
  }
  for (int64_t h = 0; h < halves; ++h) {
    const SplitGroup g = split_group(to, quads, h / 2);
    g.count[h % 2] = quad_end[h] - g.quad[h % 2];
  }
}

}  // namespace
}  // namespace octavo::avx2

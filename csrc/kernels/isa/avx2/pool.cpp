// Maximum and average over windows of codes, 32 or 16 channels at a time. Called by pool.cpp
// through the table; calls nothing. isa/scalar/pool.cpp says what every result is.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx2 {
namespace {

struct Block32 {
  static constexpr int64_t kChannels = 32;
  static __m256i load(const uint8_t* x) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  }
  static void store(uint8_t* out, __m256i v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), v);
  }
};

struct Block8 {
  static constexpr int64_t kChannels = 8;
  static __m256i load(const uint8_t* x) {
    return _mm256_castsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)));
  }
  static void store(uint8_t* out, __m256i v) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(v));
  }
};

struct Block1 {
  static constexpr int64_t kChannels = 1;
  static __m256i load(const uint8_t* x) { return _mm256_castsi128_si256(_mm_cvtsi32_si128(*x)); }
  static void store(uint8_t* out, __m256i v) {
    *out = static_cast<uint8_t>(_mm_cvtsi128_si32(_mm256_castsi256_si128(v)));
  }
};

// As many blocks of channels as fit, from channel c on; returns the first channel left.
template <class Block>
inline int64_t max_blocks(const uint8_t* x, const Window& window, int64_t c, int64_t channels,
                          uint8_t* out) {
  for (; c + Block::kChannels <= channels; c += Block::kChannels) {
    __m256i largest = _mm256_setzero_si256();
    for (int64_t i = 0; i < window.rows; ++i) {
      const uint8_t* tap = x + i * window.row_step + c;
      for (int64_t j = 0; j < window.cols; ++j, tap += window.col_step) {
        largest = _mm256_max_epu8(largest, Block::load(tap));
      }
    }
    Block::store(out + c, largest);
  }
  return c;
}

void max_windows_u8(const uint8_t* x, const Window& window, const PixelRun& run, uint8_t* out) {
  for (int64_t p = 0; p < run.pixels; ++p) {
    const uint8_t* from = x + p * run.in_step;
    uint8_t* to = out + p * run.out_step;
    int64_t c = max_blocks<Block32>(from, window, 0, run.channels, to);
    c = max_blocks<Block8>(from, window, c, run.channels, to);
    max_blocks<Block1>(from, window, c, run.channels, to);
  }
}

inline __m128i average8(__m256i sum, const AverageRule& rule) {
  const __m256 v =
      _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(rule.m), _mm256_set1_ps(rule.offset));
  // max_ps and min_ps give their second operand for NaN.
  const __m256i code = _mm256_cvtps_epi32(
      _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(rule.lo)), _mm256_set1_ps(rule.hi)));
  return _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
}

// Sums of 16 channels: 16-bit words that are spilled to 32 bits before they can overflow.
struct Sums16 {
  explicit Sums16(int32_t start) : lo(_mm256_set1_epi32(start)), hi(lo) {}
  void spill() {
    lo = _mm256_add_epi32(lo, _mm256_cvtepu16_epi32(_mm256_castsi256_si128(words)));
    hi = _mm256_add_epi32(hi, _mm256_cvtepu16_epi32(_mm256_extracti128_si256(words, 1)));
    words = _mm256_setzero_si256();
  }
  __m256i words = _mm256_setzero_si256();
  __m256i lo, hi;
};

// The codes of kLoaded (16 or 8) channels, or of `rest` channels for kLoaded = 0.
template <int kLoaded>
inline __m128i average16(const uint8_t* x, const Window& window, int64_t rest,
                         const AverageRule& rule) {
  // 257 codes of 255 fill 16 bits exactly.
  constexpr int64_t kTaps16 = 257;
  Sums16 sums(rule.start);
  int64_t free = kTaps16;
  for (int64_t i = 0; i < window.rows; ++i) {
    const uint8_t* tap = x + i * window.row_step;
    for (int64_t j = 0; j < window.cols; ++j, tap += window.col_step) {
      __m128i bytes;
      if constexpr (kLoaded == 16) {
        bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(tap));
      } else if constexpr (kLoaded == 8) {
        bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(tap));
      } else {
        alignas(16) uint8_t part[16] = {};
        __builtin_memcpy(part, tap, static_cast<size_t>(rest));
        bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(part));
      }
      sums.words = _mm256_add_epi16(sums.words, _mm256_cvtepu8_epi16(bytes));
      if (--free == 0) {
        sums.spill();
        free = kTaps16;
      }
    }
  }
  sums.spill();
  return _mm_packus_epi16(average8(sums.lo, rule), average8(sums.hi, rule));
}

void average_windows_u8(const uint8_t* x, const Window& window, const PixelRun& run,
                        const AverageRule& rule, uint8_t* out) {
  for (int64_t p = 0; p < run.pixels; ++p) {
    const uint8_t* from = x + p * run.in_step;
    uint8_t* to = out + p * run.out_step;
    int64_t c = 0;
    for (; c + 16 <= run.channels; c += 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c),
                       average16<16>(from + c, window, 16, rule));
    }
    if (c + 8 <= run.channels) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(to + c), average16<8>(from + c, window, 8, rule));
      c += 8;
    }
    if (c < run.channels) {
      const int64_t rest = run.channels - c;
      alignas(16) uint8_t result[16];
      _mm_store_si128(reinterpret_cast<__m128i*>(result),
                      average16<0>(from + c, window, rest, rule));
      __builtin_memcpy(to + c, result, static_cast<size_t>(rest));
    }
  }
}

}  // namespace

void fill_pool(ElementTable& t) {
  t.max_windows_u8 = max_windows_u8;
  t.average_windows_u8 = average_windows_u8;
}

}  // namespace octavo::avx2

// Add, multiply, affine and table look-up on codes, 32 codes at a time. Called by elementwise.cpp
// through the table; calls nothing. isa/scalar/elementwise.cpp says what every result is.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx2 {
namespace {

inline __m256i load(const uint8_t* x) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
}

inline void store(uint8_t* out, __m256i v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), v);
}

// 32 codes as floats. Unpacking interleaves within 128-bit lanes and packing undoes exactly that,
// so values keep their places through widen, arithmetic that is alike for all, and narrow.
struct Floats {
  __m256 v[4];
};

inline Floats widen(__m256i bytes) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i lo = _mm256_unpacklo_epi8(bytes, zero), hi = _mm256_unpackhi_epi8(bytes, zero);
  return {{_mm256_cvtepi32_ps(_mm256_unpacklo_epi16(lo, zero)),
           _mm256_cvtepi32_ps(_mm256_unpackhi_epi16(lo, zero)),
           _mm256_cvtepi32_ps(_mm256_unpacklo_epi16(hi, zero)),
           _mm256_cvtepi32_ps(_mm256_unpackhi_epi16(hi, zero))}};
}

// max_ps and min_ps give their second operand for NaN.
inline __m256i clamp_round(__m256 v, __m256 lo, __m256 hi) {
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, lo), hi));
}

inline __m256i narrow(const Floats& f, __m256 lo, __m256 hi) {
  const __m256i ab = _mm256_packs_epi32(clamp_round(f.v[0], lo, hi), clamp_round(f.v[1], lo, hi));
  const __m256i cd = _mm256_packs_epi32(clamp_round(f.v[2], lo, hi), clamp_round(f.v[3], lo, hi));
  return _mm256_packus_epi16(ab, cd);
}

// Runs f over 32 codes at a time; the end passes through buffers, so nothing outside the run is
// touched.
template <class F>
inline void for_each_32(const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* out, F&& f) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) store(out + i, f(load(a + i), load(b + i)));
  if (i < count) {
    const auto rest = static_cast<size_t>(count - i);
    alignas(32) uint8_t in_a[32] = {}, in_b[32] = {}, result[32];
    __builtin_memcpy(in_a, a + i, rest);
    __builtin_memcpy(in_b, b + i, rest);
    store(result, f(load(in_a), load(in_b)));
    __builtin_memcpy(out + i, result, rest);
  }
}

void add_u8u8_u8(const uint8_t* a, const uint8_t* b, int64_t count, const AddRule& rule,
                 uint8_t* out) {
  const __m256 ma = _mm256_set1_ps(rule.ma), mb = _mm256_set1_ps(rule.mb);
  const __m256 offset = _mm256_set1_ps(rule.offset);
  const __m256 lo = _mm256_set1_ps(rule.lo), hi = _mm256_set1_ps(rule.hi);
  for_each_32(a, b, count, out, [&](__m256i va, __m256i vb) {
    Floats fa = widen(va);
    const Floats fb = widen(vb);
    for (int k = 0; k < 4; ++k) {
      fa.v[k] = _mm256_fmadd_ps(fa.v[k], ma, _mm256_fmadd_ps(fb.v[k], mb, offset));
    }
    return narrow(fa, lo, hi);
  });
}

// Factors are integers of magnitude up to 255: differences and products are exact in float32.
void multiply_u8u8_u8(const uint8_t* a, const uint8_t* b, int64_t count, const MultiplyRule& rule,
                      uint8_t* out) {
  const __m256 za = _mm256_set1_ps(static_cast<float>(rule.za));
  const __m256 zb = _mm256_set1_ps(static_cast<float>(rule.zb));
  const __m256 m = _mm256_set1_ps(rule.m), offset = _mm256_set1_ps(rule.offset);
  const __m256 lo = _mm256_set1_ps(rule.lo), hi = _mm256_set1_ps(rule.hi);
  for_each_32(a, b, count, out, [&](__m256i va, __m256i vb) {
    Floats fa = widen(va);
    const Floats fb = widen(vb);
    for (int k = 0; k < 4; ++k) {
      const __m256 product = _mm256_mul_ps(_mm256_sub_ps(fa.v[k], za), _mm256_sub_ps(fb.v[k], zb));
      fa.v[k] = _mm256_fmadd_ps(product, m, offset);
    }
    return narrow(fa, lo, hi);
  });
}

inline __m256 load8(const uint8_t* x) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
}

inline void store8(uint8_t* out, __m256i v) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
}

// Calls f(channel, channels, block) for blocks of 8 channels; block(apply) runs apply(__m256) ->
// __m256i over the pixels. Channels outside and pixels inside keep parameters in registers; 32
// pixels at a time stay in L1.
template <class F>
inline void for_each_8(const uint8_t* x, const PixelRun& run, uint8_t* out, F&& f) {
  constexpr int64_t kPixels = 32;
  for (int64_t first = 0; first < run.pixels; first += kPixels) {
    const int64_t last = first + kPixels < run.pixels ? first + kPixels : run.pixels;
    for (int64_t c = 0; c < run.channels; c += 8) {
      const int64_t channels = run.channels - c < 8 ? run.channels - c : 8;
      f(c, channels, [&](auto&& apply) {
        for (int64_t p = first; p < last; ++p) {
          const uint8_t* from = x + p * run.in_step + c;
          uint8_t* to = out + p * run.out_step + c;
          if (channels == 8) {
            store8(to, apply(load8(from)));
          } else {
            alignas(8) uint8_t in[8] = {}, result[8];
            __builtin_memcpy(in, from, static_cast<size_t>(channels));
            store8(result, apply(load8(in)));
            __builtin_memcpy(to, result, static_cast<size_t>(channels));
          }
        }
      });
    }
  }
}

template <class T>
inline void copy_first(T* to, const T* from, int64_t count) {
  __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
}

void multiply_pixels_u8u8_u8(const uint8_t* a, const uint8_t* b, const PixelRun& run,
                             const MultiplyRule& rule, uint8_t* out) {
  const __m256 za = _mm256_set1_ps(static_cast<float>(rule.za));
  const __m256 zb = _mm256_set1_ps(static_cast<float>(rule.zb));
  const __m256 m = _mm256_set1_ps(rule.m), offset = _mm256_set1_ps(rule.offset);
  const __m256 lo = _mm256_set1_ps(rule.lo), hi = _mm256_set1_ps(rule.hi);
  for_each_8(a, run, out, [&](int64_t c, int64_t channels, auto&& block) {
    alignas(8) uint8_t factors[8] = {};
    copy_first(factors, b + c, channels);
    const __m256 vb = _mm256_sub_ps(load8(factors), zb);
    block([&](__m256 va) {
      const __m256 product = _mm256_mul_ps(_mm256_sub_ps(va, za), vb);
      return clamp_round(_mm256_fmadd_ps(product, m, offset), lo, hi);
    });
  });
}

void affine_pixels_u8_u8(const uint8_t* x, const PixelRun& run, const float* m, const float* offset,
                         float lo, float hi, uint8_t* out) {
  const __m256 vlo = _mm256_set1_ps(lo), vhi = _mm256_set1_ps(hi);
  for_each_8(x, run, out, [&](int64_t c, int64_t channels, auto&& block) {
    alignas(32) float part_m[8] = {}, part_offset[8] = {};
    copy_first(part_m, m + c, channels);
    copy_first(part_offset, offset + c, channels);
    const __m256 vm = _mm256_load_ps(part_m), va = _mm256_load_ps(part_offset);
    block([&](__m256 v) { return clamp_round(_mm256_fmadd_ps(v, vm, va), vlo, vhi); });
  });
}

// Shuffle k gives 0 unless the code lies in [16k, 16k + 15]: subtracting 16k and adding 0x70 with
// saturation keeps the low four bits of such codes and sets bit 7 of all others.
void table_u8_u8(const uint8_t* x, int64_t count, const uint8_t* table, uint8_t* out) {
  __m256i t[16];
  for (int k = 0; k < 16; ++k) {
    t[k] = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * k)));
  }
  const __m256i saturate = _mm256_set1_epi8(0x70), sixteen = _mm256_set1_epi8(16);
  for_each_32(x, x, count, out, [&](__m256i v, __m256i) {
    __m256i result = _mm256_setzero_si256();
    for (int k = 0; k < 16; ++k) {
      result = _mm256_or_si256(result, _mm256_shuffle_epi8(t[k], _mm256_adds_epu8(v, saturate)));
      v = _mm256_sub_epi8(v, sixteen);
    }
    return result;
  });
}

}  // namespace

void fill_elementwise(ElementTable& t) {
  t.add_u8u8_u8 = add_u8u8_u8;
  t.multiply_u8u8_u8 = multiply_u8u8_u8;
  t.multiply_pixels_u8u8_u8 = multiply_pixels_u8u8_u8;
  t.affine_pixels_u8_u8 = affine_pixels_u8_u8;
  t.table_u8_u8 = table_u8_u8;
}

}  // namespace octavo::avx2

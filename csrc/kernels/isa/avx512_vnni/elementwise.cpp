// Add, multiply, affine and table look-up on codes, 64 codes at a time. Called by elementwise.cpp
// through the table; calls nothing. isa/scalar/elementwise.cpp says what every result is.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx512_vnni {
namespace {

inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffffu : (1u << count) - 1u);
}

// 64 codes as floats. Unpacking interleaves within 128-bit lanes and packing undoes exactly that,
// so values keep their places through widen, arithmetic that is alike for all, and narrow.
struct Floats {
  __m512 v[4];
};

inline Floats widen(__m512i bytes) {
  const __m512i zero = _mm512_setzero_si512();
  const __m512i lo = _mm512_unpacklo_epi8(bytes, zero), hi = _mm512_unpackhi_epi8(bytes, zero);
  return {{_mm512_cvtepi32_ps(_mm512_unpacklo_epi16(lo, zero)),
           _mm512_cvtepi32_ps(_mm512_unpackhi_epi16(lo, zero)),
           _mm512_cvtepi32_ps(_mm512_unpacklo_epi16(hi, zero)),
           _mm512_cvtepi32_ps(_mm512_unpackhi_epi16(hi, zero))}};
}

// max_ps and min_ps give their second operand for NaN.
inline __m512i clamp_round(__m512 v, __m512 lo, __m512 hi) {
  return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, lo), hi));
}

inline __m512i narrow(const Floats& f, __m512 lo, __m512 hi) {
  const __m512i ab = _mm512_packs_epi32(clamp_round(f.v[0], lo, hi), clamp_round(f.v[1], lo, hi));
  const __m512i cd = _mm512_packs_epi32(clamp_round(f.v[2], lo, hi), clamp_round(f.v[3], lo, hi));
  return _mm512_packus_epi16(ab, cd);
}

inline __m512 load16(const uint8_t* x, __mmask16 mask) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, x)));
}

inline void store16(uint8_t* out, __mmask16 mask, __m512 v, __m512 lo, __m512 hi) {
  _mm512_mask_cvtepi32_storeu_epi8(out, mask, clamp_round(v, lo, hi));
}

void add_u8u8_u8(const uint8_t* a, const uint8_t* b, int64_t count, const AddRule& rule,
                 uint8_t* out) {
  const __m512 ma = _mm512_set1_ps(rule.ma), mb = _mm512_set1_ps(rule.mb);
  const __m512 offset = _mm512_set1_ps(rule.offset);
  const __m512 lo = _mm512_set1_ps(rule.lo), hi = _mm512_set1_ps(rule.hi);
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    Floats fa = widen(_mm512_loadu_si512(a + i));
    const Floats fb = widen(_mm512_loadu_si512(b + i));
    for (int k = 0; k < 4; ++k) {
      fa.v[k] = _mm512_fmadd_ps(fa.v[k], ma, _mm512_fmadd_ps(fb.v[k], mb, offset));
    }
    _mm512_storeu_si512(out + i, narrow(fa, lo, hi));
  }
  for (; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    const __m512 vb = _mm512_fmadd_ps(load16(b + i, mask), mb, offset);
    store16(out + i, mask, _mm512_fmadd_ps(load16(a + i, mask), ma, vb), lo, hi);
  }
}

// Factors are integers of magnitude up to 255: differences and products are exact in float32.
struct Product {
  explicit Product(const MultiplyRule& r)
      : za(_mm512_set1_ps(static_cast<float>(r.za))),
        zb(_mm512_set1_ps(static_cast<float>(r.zb))),
        m(_mm512_set1_ps(r.m)),
        offset(_mm512_set1_ps(r.offset)),
        lo(_mm512_set1_ps(r.lo)),
        hi(_mm512_set1_ps(r.hi)) {}
  // vb: b less its zero point.
  __m512 operator()(__m512 va, __m512 vb) const {
    return _mm512_fmadd_ps(_mm512_mul_ps(_mm512_sub_ps(va, za), vb), m, offset);
  }
  __m512 za, zb, m, offset, lo, hi;
};

void multiply_u8u8_u8(const uint8_t* a, const uint8_t* b, int64_t count, const MultiplyRule& rule,
                      uint8_t* out) {
  const Product product(rule);
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    Floats fa = widen(_mm512_loadu_si512(a + i));
    const Floats fb = widen(_mm512_loadu_si512(b + i));
    for (int k = 0; k < 4; ++k) fa.v[k] = product(fa.v[k], _mm512_sub_ps(fb.v[k], product.zb));
    _mm512_storeu_si512(out + i, narrow(fa, product.lo, product.hi));
  }
  for (; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    const __m512 vb = _mm512_sub_ps(load16(b + i, mask), product.zb);
    store16(out + i, mask, product(load16(a + i, mask), vb), product.lo, product.hi);
  }
}

void multiply_pixels_u8u8_u8(const uint8_t* a, const uint8_t* b, const PixelRun& run,
                             const MultiplyRule& rule, uint8_t* out) {
  const Product product(rule);
  // Channels outside and pixels inside keep b in registers; 32 pixels at a time stay in L1.
  constexpr int64_t kPixels = 32;
  for (int64_t first = 0; first < run.pixels; first += kPixels) {
    const int64_t last = first + kPixels < run.pixels ? first + kPixels : run.pixels;
    int64_t c = 0;
    for (; c + 64 <= run.channels; c += 64) {
      Floats fb = widen(_mm512_loadu_si512(b + c));
      for (int k = 0; k < 4; ++k) fb.v[k] = _mm512_sub_ps(fb.v[k], product.zb);
      for (int64_t p = first; p < last; ++p) {
        Floats fa = widen(_mm512_loadu_si512(a + p * run.in_step + c));
        for (int k = 0; k < 4; ++k) fa.v[k] = product(fa.v[k], fb.v[k]);
        _mm512_storeu_si512(out + p * run.out_step + c, narrow(fa, product.lo, product.hi));
      }
    }
    for (; c < run.channels; c += 16) {
      const __mmask16 mask = first_lanes(run.channels - c);
      const __m512 vb = _mm512_sub_ps(load16(b + c, mask), product.zb);
      for (int64_t p = first; p < last; ++p) {
        store16(out + p * run.out_step + c, mask,
                product(load16(a + p * run.in_step + c, mask), vb), product.lo, product.hi);
      }
    }
  }
}

void affine_pixels_u8_u8(const uint8_t* x, const PixelRun& run, const float* m, const float* offset,
                         float lo, float hi, uint8_t* out) {
  const __m512 vlo = _mm512_set1_ps(lo), vhi = _mm512_set1_ps(hi);
  constexpr int64_t kPixels = 32;
  for (int64_t first = 0; first < run.pixels; first += kPixels) {
    const int64_t last = first + kPixels < run.pixels ? first + kPixels : run.pixels;
    for (int64_t c = 0; c < run.channels; c += 16) {
      const __mmask16 mask = first_lanes(run.channels - c);
      const __m512 vm = _mm512_maskz_loadu_ps(mask, m + c);
      const __m512 va = _mm512_maskz_loadu_ps(mask, offset + c);
      for (int64_t p = first; p < last; ++p) {
        const __m512 v = _mm512_fmadd_ps(load16(x + p * run.in_step + c, mask), vm, va);
        store16(out + p * run.out_step + c, mask, v, vlo, vhi);
      }
    }
  }
}

// Sixteen shuffles of 16 entries each; bits 4..7 of the code choose among them.
// (elementwise_vbmi.cpp has the two-instruction form for the CPUs with byte permutes.)
void table_u8_u8(const uint8_t* x, int64_t count, const uint8_t* table, uint8_t* out) {
  __m512i t[16];
  for (int k = 0; k < 16; ++k) {
    t[k] =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * k)));
  }
  const __m512i low = _mm512_set1_epi8(15);
  for (int64_t i = 0; i < count; i += 64) {
    const __mmask64 mask = count - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (count - i)) - 1;
    const __m512i v = _mm512_maskz_loadu_epi8(mask, x + i);
    const __m512i index = _mm512_and_si512(v, low);
    const __mmask64 bit4 = _mm512_test_epi8_mask(v, _mm512_set1_epi8(0x10));
    const __mmask64 bit5 = _mm512_test_epi8_mask(v, _mm512_set1_epi8(0x20));
    const __mmask64 bit6 = _mm512_test_epi8_mask(v, _mm512_set1_epi8(0x40));
    const __mmask64 bit7 = _mm512_movepi8_mask(v);
    __m512i r[8];
    for (int k = 0; k < 8; ++k) {
      r[k] =
          _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(t[2 * k], index), bit4, t[2 * k + 1], index);
    }
    for (int k = 0; k < 4; ++k) r[k] = _mm512_mask_blend_epi8(bit5, r[2 * k], r[2 * k + 1]);
    for (int k = 0; k < 2; ++k) r[k] = _mm512_mask_blend_epi8(bit6, r[2 * k], r[2 * k + 1]);
    _mm512_mask_storeu_epi8(out + i, mask, _mm512_mask_blend_epi8(bit7, r[0], r[1]));
  }
}

}  // namespace

void fill_elementwise(ElementTable& t) {
  t.add_u8u8_u8 = add_u8u8_u8;
  t.multiply_u8u8_u8 = multiply_u8u8_u8;
  t.multiply_pixels_u8u8_u8 = multiply_pixels_u8u8_u8;
  t.affine_pixels_u8_u8 = affine_pixels_u8_u8;
  t.table_u8_u8 = table_u8_u8;
}

}  // namespace octavo::avx512_vnni

// Quantize and dequantize runs and transposing blocks, 16 floats a vector. Called by quantize.cpp
// and the dynamic products through the table; calls nothing. isa/scalar/quantize.cpp says what
// every result is.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx512_vnni {
namespace {

struct Rule {
  explicit Rule(const QuantizeRule& r)
      : inverse(_mm512_set1_ps(r.inverse)), lo(_mm512_set1_ps(r.lo)), hi(_mm512_set1_ps(r.hi)) {}
  __m512 inverse, lo, hi;
};

inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffffu : (1u << count) - 1u);
}

// Codes without their zero point. max_ps and min_ps give their second operand for NaN.
inline __m512i clamp_round(__m512 v, __m512 lo, __m512 hi) {
  return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, lo), hi));
}

inline __m512i codes(__m512 x, const Rule& rule) {
  return clamp_round(_mm512_mul_ps(x, rule.inverse), rule.lo, rule.hi);
}

// Packs within 128-bit lanes leave dword 4 * v + lane of the run at 4 * lane + v.
inline __m512i packed_order() {
  return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

void quantize_f32_u8(const float* x, int64_t count, const QuantizeRule& r, uint8_t* q) {
  const Rule rule(r);
  const __m512i order = packed_order();
  const __m512i zero16 = _mm512_set1_epi16(static_cast<int16_t>(r.zero_point));
  const __m512i zero32 = _mm512_set1_epi32(r.zero_point);
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    const __m512i a = codes(_mm512_loadu_ps(x + i), rule);
    const __m512i b = codes(_mm512_loadu_ps(x + i + 16), rule);
    const __m512i c = codes(_mm512_loadu_ps(x + i + 32), rule);
    const __m512i d = codes(_mm512_loadu_ps(x + i + 48), rule);
    // [-255, 255] fits 16 bits; with the zero point added the codes lie in [0, 255].
    const __m512i ab = _mm512_add_epi16(_mm512_packs_epi32(a, b), zero16);
    const __m512i cd = _mm512_add_epi16(_mm512_packs_epi32(c, d), zero16);
    const __m512i bytes = _mm512_packus_epi16(ab, cd);
    _mm512_storeu_si512(q + i, _mm512_permutexvar_epi32(order, bytes));
  }
  for (; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    const __m512i a = codes(_mm512_maskz_loadu_ps(mask, x + i), rule);
    _mm512_mask_cvtepi32_storeu_epi8(q + i, mask, _mm512_add_epi32(a, zero32));
  }
}

void quantize_f32_s8(const float* x, int64_t count, const QuantizeRule& r, int8_t* q) {
  const Rule rule(r);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    _mm512_mask_cvtepi32_storeu_epi8(q + i, mask, codes(_mm512_maskz_loadu_ps(mask, x + i), rule));
  }
}

void quantize_columns_f32_s8(const float* x, int64_t columns, const float* inverse, float lo,
                             float hi, int8_t* q) {
  const __m512 vlo = _mm512_set1_ps(lo), vhi = _mm512_set1_ps(hi);
  for (int64_t i = 0; i < columns; i += 16) {
    const __mmask16 mask = first_lanes(columns - i);
    const __m512 v =
        _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_maskz_loadu_ps(mask, inverse + i));
    _mm512_mask_cvtepi32_storeu_epi8(q + i, mask, clamp_round(v, vlo, vhi));
  }
}

// Codes of up to four planes in the bytes of one dword a pixel: sums of shifted codes plus the zero
// point in every byte are right modulo 2^32, whatever the signs in between.
template <int kChannels>
inline __m512i four_codes(const float* x, int64_t plane_stride, __mmask16 mask, const Rule& rule,
                          __m512i zeros) {
  __m512i sum = _mm512_add_epi32(codes(_mm512_maskz_loadu_ps(mask, x), rule), zeros);
  if constexpr (kChannels > 1) {
    const __m512i v = codes(_mm512_maskz_loadu_ps(mask, x + plane_stride), rule);
    sum = _mm512_add_epi32(sum, _mm512_slli_epi32(v, 8));
  }
  if constexpr (kChannels > 2) {
    const __m512i v = codes(_mm512_maskz_loadu_ps(mask, x + 2 * plane_stride), rule);
    sum = _mm512_add_epi32(sum, _mm512_slli_epi32(v, 16));
  }
  if constexpr (kChannels > 3) {
    const __m512i v = codes(_mm512_maskz_loadu_ps(mask, x + 3 * plane_stride), rule);
    sum = _mm512_add_epi32(sum, _mm512_slli_epi32(v, 24));
  }
  return sum;
}

inline __m512i any_codes(const float* x, int64_t plane_stride, int64_t channels, __mmask16 mask,
                         const Rule& rule, __m512i zeros) {
  if (channels >= 4) return four_codes<4>(x, plane_stride, mask, rule, zeros);
  if (channels == 3) return four_codes<3>(x, plane_stride, mask, rule, zeros);
  if (channels == 2) return four_codes<2>(x, plane_stride, mask, rule, zeros);
  if (channels == 1) return four_codes<1>(x, plane_stride, mask, rule, zeros);
  return zeros;
}

inline __m512i zero_in_bytes(int32_t zero_point) {
  return _mm512_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(zero_point) * 0x01010101u));
}

// Three planes (colour images) to pixels of three bytes.
void quantize_three_planes(const float* x, int64_t plane_stride, int64_t pixels,
                           const QuantizeRule& r, uint8_t* q) {
  const Rule rule(r);
  const __m512i zeros = zero_in_bytes(r.zero_point);
  const __m512i drop_fourth =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
  const __m512i join_lanes =
      _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15);
  for (int64_t p = 0; p < pixels; p += 16) {
    const int64_t count = pixels - p < 16 ? pixels - p : 16;
    __m512i v = four_codes<3>(x + p, plane_stride, first_lanes(count), rule, zeros);
    v = _mm512_permutexvar_epi32(join_lanes, _mm512_shuffle_epi8(v, drop_fourth));
    _mm512_mask_storeu_epi8(q + 3 * p, (__mmask64{1} << (3 * count)) - 1, v);
  }
}

// In each 128-bit lane, rows a, b, c, d of four dwords become columns.
inline void transpose4(__m512i& a, __m512i& b, __m512i& c, __m512i& d) {
  const __m512i ab_lo = _mm512_unpacklo_epi32(a, b), ab_hi = _mm512_unpackhi_epi32(a, b);
  const __m512i cd_lo = _mm512_unpacklo_epi32(c, d), cd_hi = _mm512_unpackhi_epi32(c, d);
  a = _mm512_unpacklo_epi64(ab_lo, cd_lo);
  b = _mm512_unpackhi_epi64(ab_lo, cd_lo);
  c = _mm512_unpacklo_epi64(ab_hi, cd_hi);
  d = _mm512_unpackhi_epi64(ab_hi, cd_hi);
}

// Planes are visited in blocks of four cache lines, so that few of them are open at once.
constexpr int64_t kBlockPixels = 64;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// 16 pixels x up to 16 channels.
inline void quantize_block(const float* x, int64_t plane_stride, int64_t pixels, int64_t channels,
                           const Rule& rule, __m512i zeros, uint8_t* q, int64_t pitch) {
  const __mmask16 in = first_lanes(pixels);
  __m512i v[4];
  for (int k = 0; k < 4; ++k) {
    v[k] = any_codes(x + 4 * k * plane_stride, plane_stride, channels - 4 * k, in, rule, zeros);
  }
  transpose4(v[0], v[1], v[2], v[3]);
  // Lane i of v[k] now holds the channels of pixel 4 * i + k.
  if (pixels == 16 && channels >= 16) {
    for (int k = 0; k < 4; ++k) {
      auto at = [&](int lane) { return reinterpret_cast<__m128i*>(q + (4 * lane + k) * pitch); };
      _mm_storeu_si128(at(0), _mm512_castsi512_si128(v[k]));
      _mm_storeu_si128(at(1), _mm512_extracti32x4_epi32(v[k], 1));
      _mm_storeu_si128(at(2), _mm512_extracti32x4_epi32(v[k], 2));
      _mm_storeu_si128(at(3), _mm512_extracti32x4_epi32(v[k], 3));
    }
    return;
  }
  const __mmask16 out = first_lanes(channels);
  alignas(64) uint8_t tile[4][64];
  for (int k = 0; k < 4; ++k) _mm512_store_si512(tile[k], v[k]);
  for (int64_t p = 0; p < pixels; ++p) {
    const __m128i pixel =
        _mm_load_si128(reinterpret_cast<const __m128i*>(tile[p % 4] + 16 * (p / 4)));
    _mm_mask_storeu_epi8(q + p * pitch, out, pixel);
  }
}

void quantize_planes_f32_u8(const float* x, int64_t plane_stride, int64_t pixels, int64_t channels,
                            const QuantizeRule& r, uint8_t* q, int64_t pixel_pitch) {
  if (channels == 3 && pixel_pitch == 3) {
    quantize_three_planes(x, plane_stride, pixels, r, q);
    return;
  }
  const Rule rule(r);
  const __m512i zeros = zero_in_bytes(r.zero_point);
  for (int64_t block = 0; block < pixels; block += kBlockPixels) {
    const int64_t end = smaller(pixels, block + kBlockPixels);
    for (int64_t c = 0; c < channels; c += 16) {
      for (int64_t p = block; p < end; p += 16) {
        quantize_block(x + c * plane_stride + p, plane_stride, smaller(16, end - p), channels - c,
                       rule, zeros, q + p * pixel_pitch + c, pixel_pitch);
      }
    }
  }
}

// y = scale * float(q - zero_point)
inline __m512 real(__m512i q, __m512i zero_point, __m512 scale) {
  return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_sub_epi32(q, zero_point)));
}

void dequantize_u8_f32(const uint8_t* q, int64_t count, float scale, int32_t zero_point, float* y) {
  const __m512i zero = _mm512_set1_epi32(zero_point);
  const __m512 s = _mm512_set1_ps(scale);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + i));
    _mm512_storeu_ps(y + i, real(_mm512_cvtepu8_epi32(bytes), zero, s));
  }
  if (i < count) {
    const __mmask16 mask = first_lanes(count - i);
    const __m128i bytes = _mm_maskz_loadu_epi8(mask, q + i);
    _mm512_mask_storeu_ps(y + i, mask, real(_mm512_cvtepu8_epi32(bytes), zero, s));
  }
}

// 16 pixels x up to 16 channels.
inline void dequantize_block(const uint8_t* q, int64_t pitch, int64_t pixels, int64_t channels,
                             __m512i zero, __m512 scale, float* y, int64_t plane_stride) {
  alignas(64) uint8_t tile[4][64];
  __m512i v[4];
  if (pixels == 16 && channels >= 16) {
    for (int k = 0; k < 4; ++k) {
      auto at = [&](int lane) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + (4 * lane + k) * pitch));
      };
      v[k] = _mm512_castsi128_si512(at(0));
      v[k] = _mm512_inserti32x4(v[k], at(1), 1);
      v[k] = _mm512_inserti32x4(v[k], at(2), 2);
      v[k] = _mm512_inserti32x4(v[k], at(3), 3);
    }
  } else {
    const __mmask16 in = first_lanes(channels);
    for (int64_t p = 0; p < 16; ++p) {
      const __m128i pixel =
          p < pixels ? _mm_maskz_loadu_epi8(in, q + p * pitch) : _mm_setzero_si128();
      _mm_store_si128(reinterpret_cast<__m128i*>(tile[p % 4] + 16 * (p / 4)), pixel);
    }
    for (int k = 0; k < 4; ++k) v[k] = _mm512_load_si512(tile[k]);
  }
  transpose4(v[0], v[1], v[2], v[3]);
  // Byte j of dword p of v[k] is channel 4 * k + j of pixel p.
  const __mmask16 out = first_lanes(pixels);
  const __m512i low = _mm512_set1_epi32(0xff);
  for (int64_t c = 0; c < smaller(16, channels); ++c) {
    const __m512i codes = _mm512_and_si512(
        _mm512_srl_epi32(v[c / 4], _mm_cvtsi32_si128(static_cast<int>(8 * (c % 4)))), low);
    _mm512_mask_storeu_ps(y + c * plane_stride, out, real(codes, zero, scale));
  }
}

void dequantize_planes_u8_f32(const uint8_t* q, int64_t pixel_pitch, int64_t pixels,
                              int64_t channels, float scale, int32_t zero_point, float* y,
                              int64_t plane_stride) {
  const __m512i zero = _mm512_set1_epi32(zero_point);
  const __m512 s = _mm512_set1_ps(scale);
  for (int64_t block = 0; block < pixels; block += kBlockPixels) {
    const int64_t end = smaller(pixels, block + kBlockPixels);
    for (int64_t c = 0; c < channels; c += 16) {
      for (int64_t p = block; p < end; p += 16) {
        dequantize_block(q + p * pixel_pitch + c, pixel_pitch, smaller(16, end - p), channels - c,
                         zero, s, y + c * plane_stride + p, plane_stride);
      }
    }
  }
}

}  // namespace

void fill_quantize(ElementTable& t) {
  t.quantize_f32_u8 = quantize_f32_u8;
  t.quantize_f32_s8 = quantize_f32_s8;
  t.quantize_columns_f32_s8 = quantize_columns_f32_s8;
  t.quantize_planes_f32_u8 = quantize_planes_f32_u8;
  t.dequantize_u8_f32 = dequantize_u8_f32;
  t.dequantize_planes_u8_f32 = dequantize_planes_u8_f32;
}

}  // namespace octavo::avx512_vnni

// Quantize and dequantize runs and transposing blocks, 8 floats a vector. Called by quantize.cpp
// and the dynamic products through the table; calls nothing. isa/scalar/quantize.cpp says what
// every result is.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx2 {
namespace {

struct Rule {
  explicit Rule(const QuantizeRule& r)
      : inverse(_mm256_set1_ps(r.inverse)), lo(_mm256_set1_ps(r.lo)), hi(_mm256_set1_ps(r.hi)) {}
  __m256 inverse, lo, hi;
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Ends of runs pass through buffers of one vector: nothing outside a run is touched.
template <class T>
inline void copy(T* to, const T* from, int64_t count) {
  __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
}

inline __m256 load_first(const float* x, int64_t count) {
  if (count >= 8) return _mm256_loadu_ps(x);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(
      x, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(count)), lane));
}

// Codes without their zero point. max_ps and min_ps give their second operand for NaN.
inline __m256i clamp_round(__m256 v, __m256 lo, __m256 hi) {
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, lo), hi));
}

inline __m256i codes(__m256 x, const Rule& rule) {
  return clamp_round(_mm256_mul_ps(x, rule.inverse), rule.lo, rule.hi);
}

// Packs within 128-bit lanes leave dword 2 * v + lane of 32 codes at 4 * lane + v.
inline __m256i packed_order() { return _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); }

// 32 floats to 32 codes with a zero point: [-255, 255] fits 16 bits.
inline __m256i codes32(const float* x, const Rule& rule, __m256i zero16) {
  const __m256i ab =
      _mm256_packs_epi32(codes(_mm256_loadu_ps(x), rule), codes(_mm256_loadu_ps(x + 8), rule));
  const __m256i cd = _mm256_packs_epi32(codes(_mm256_loadu_ps(x + 16), rule),
                                        codes(_mm256_loadu_ps(x + 24), rule));
  const __m256i bytes =
      _mm256_packus_epi16(_mm256_add_epi16(ab, zero16), _mm256_add_epi16(cd, zero16));
  return _mm256_permutevar8x32_epi32(bytes, packed_order());
}

void quantize_f32_u8(const float* x, int64_t count, const QuantizeRule& r, uint8_t* q) {
  const Rule rule(r);
  const __m256i zero16 = _mm256_set1_epi16(static_cast<int16_t>(r.zero_point));
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i), codes32(x + i, rule, zero16));
  }
  if (i < count) {
    float in[32] = {};
    alignas(32) uint8_t out[32];
    copy(in, x + i, count - i);
    _mm256_store_si256(reinterpret_cast<__m256i*>(out), codes32(in, rule, zero16));
    copy(q + i, out, count - i);
  }
}

// 8 dwords in [-128, 127] to 8 bytes.
inline __m128i signed_bytes(__m256i v) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  return _mm_packs_epi16(words, words);
}

inline void store_first(int8_t* q, __m256i v, int64_t count) {
  alignas(16) int8_t out[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(out), signed_bytes(v));
  copy(q, out, smaller(count, 8));
}

void quantize_f32_s8(const float* x, int64_t count, const QuantizeRule& r, int8_t* q) {
  const Rule rule(r);
  for (int64_t i = 0; i < count; i += 8) {
    store_first(q + i, codes(load_first(x + i, count - i), rule), count - i);
  }
}

void quantize_columns_f32_s8(const float* x, int64_t columns, const float* inverse, float lo,
                             float hi, int8_t* q) {
  const __m256 vlo = _mm256_set1_ps(lo), vhi = _mm256_set1_ps(hi);
  for (int64_t i = 0; i < columns; i += 8) {
    const int64_t count = columns - i;
    const __m256 v = _mm256_mul_ps(load_first(x + i, count), load_first(inverse + i, count));
    store_first(q + i, clamp_round(v, vlo, vhi), count);
  }
}

inline __m256i zero_in_bytes(int32_t zero_point) {
  return _mm256_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(zero_point) * 0x01010101u));
}

// Codes of up to four planes in the bytes of one dword a pixel: sums of shifted codes plus the zero
// point in every byte are right modulo 2^32, whatever the signs in between.
inline __m256i four_codes(const float* x, int64_t plane_stride, int64_t channels, int64_t pixels,
                          const Rule& rule, __m256i zeros) {
  __m256i sum = zeros;
  for (int64_t c = 0; c < smaller(channels, 4); ++c) {
    const __m256i v = codes(load_first(x + c * plane_stride, pixels), rule);
    sum = _mm256_add_epi32(sum, _mm256_sll_epi32(v, _mm_cvtsi32_si128(static_cast<int>(8 * c))));
  }
  return sum;
}

// Three planes (colour images) to pixels of three bytes.
void quantize_three_planes(const float* x, int64_t plane_stride, int64_t pixels,
                           const QuantizeRule& r, uint8_t* q) {
  const Rule rule(r);
  const __m256i zeros = zero_in_bytes(r.zero_point);
  const __m256i drop_fourth = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
  const __m256i join_lanes = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7);
  auto triples = [&](const float* from, int64_t count) {
    __m256i v = _mm256_add_epi32(zeros, codes(load_first(from, count), rule));
    v = _mm256_add_epi32(v,
                         _mm256_slli_epi32(codes(load_first(from + plane_stride, count), rule), 8));
    v = _mm256_add_epi32(
        v, _mm256_slli_epi32(codes(load_first(from + 2 * plane_stride, count), rule), 16));
    return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(v, drop_fourth), join_lanes);
  };
  int64_t p = 0;
  // A store writes 32 bytes, 24 of them codes: it needs 11 pixels of room.
  for (; p + 11 <= pixels; p += 8) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + 3 * p), triples(x + p, 8));
  }
  for (; p < pixels; p += 8) {
    alignas(32) uint8_t out[32];
    _mm256_store_si256(reinterpret_cast<__m256i*>(out), triples(x + p, pixels - p));
    copy(q + 3 * p, out, 3 * smaller(8, pixels - p));
  }
}

// In each 128-bit lane, rows a, b, c, d of four dwords become columns.
inline void transpose4(__m256i& a, __m256i& b, __m256i& c, __m256i& d) {
  const __m256i ab_lo = _mm256_unpacklo_epi32(a, b), ab_hi = _mm256_unpackhi_epi32(a, b);
  const __m256i cd_lo = _mm256_unpacklo_epi32(c, d), cd_hi = _mm256_unpackhi_epi32(c, d);
  a = _mm256_unpacklo_epi64(ab_lo, cd_lo);
  b = _mm256_unpackhi_epi64(ab_lo, cd_lo);
  c = _mm256_unpacklo_epi64(ab_hi, cd_hi);
  d = _mm256_unpackhi_epi64(ab_hi, cd_hi);
}

// Planes are visited in blocks of four cache lines, so that few of them are open at once.
constexpr int64_t kBlockPixels = 64;

// 8 pixels x up to 16 channels.
inline void quantize_block(const float* x, int64_t plane_stride, int64_t pixels, int64_t channels,
                           const Rule& rule, __m256i zeros, uint8_t* q, int64_t pitch) {
  __m256i v[4];
  for (int64_t k = 0; k < 4; ++k) {
    v[k] =
        four_codes(x + 4 * k * plane_stride, plane_stride, channels - 4 * k, pixels, rule, zeros);
  }
  transpose4(v[0], v[1], v[2], v[3]);
  // Lane i of v[k] now holds the channels of pixel 4 * i + k.
  if (pixels >= 8 && channels >= 16) {
    for (int k = 0; k < 4; ++k) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q + k * pitch), _mm256_castsi256_si128(v[k]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q + (4 + k) * pitch),
                       _mm256_extracti128_si256(v[k], 1));
    }
    return;
  }
  alignas(32) uint8_t tile[4][32];
  for (int k = 0; k < 4; ++k) _mm256_store_si256(reinterpret_cast<__m256i*>(tile[k]), v[k]);
  for (int64_t p = 0; p < smaller(pixels, 8); ++p) {
    copy(q + p * pitch, tile[p % 4] + 16 * (p / 4), smaller(channels, 16));
  }
}

void quantize_planes_f32_u8(const float* x, int64_t plane_stride, int64_t pixels, int64_t channels,
                            const QuantizeRule& r, uint8_t* q, int64_t pixel_pitch) {
  if (channels == 3 && pixel_pitch == 3) {
    quantize_three_planes(x, plane_stride, pixels, r, q);
    return;
  }
  const Rule rule(r);
  const __m256i zeros = zero_in_bytes(r.zero_point);
  for (int64_t block = 0; block < pixels; block += kBlockPixels) {
    const int64_t end = smaller(pixels, block + kBlockPixels);
    for (int64_t c = 0; c < channels; c += 16) {
      for (int64_t p = block; p < end; p += 8) {
        quantize_block(x + c * plane_stride + p, plane_stride, end - p, channels - c, rule, zeros,
                       q + p * pixel_pitch + c, pixel_pitch);
      }
    }
  }
}

// y = scale * float(q - zero_point)
inline __m256 real(__m256i q, __m256i zero_point, __m256 scale) {
  return _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_sub_epi32(q, zero_point)));
}

void dequantize_u8_f32(const uint8_t* q, int64_t count, float scale, int32_t zero_point, float* y) {
  const __m256i zero = _mm256_set1_epi32(zero_point);
  const __m256 s = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(q + i));
    _mm256_storeu_ps(y + i, real(_mm256_cvtepu8_epi32(bytes), zero, s));
  }
  if (i < count) {
    alignas(16) uint8_t in[16] = {};
    alignas(32) float out[8];
    copy(in, q + i, count - i);
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(in));
    _mm256_store_ps(out, real(_mm256_cvtepu8_epi32(bytes), zero, s));
    copy(y + i, out, count - i);
  }
}

// 8 pixels x up to 16 channels.
inline void dequantize_block(const uint8_t* q, int64_t pitch, int64_t pixels, int64_t channels,
                             __m256i zero, __m256 scale, float* y, int64_t plane_stride) {
  alignas(32) uint8_t tile[4][32] = {};
  __m256i v[4];
  if (pixels >= 8 && channels >= 16) {
    for (int k = 0; k < 4; ++k) {
      const auto* near = reinterpret_cast<const __m128i*>(q + k * pitch);
      const auto* far = reinterpret_cast<const __m128i*>(q + (4 + k) * pitch);
      v[k] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(near)),
                                     _mm_loadu_si128(far), 1);
    }
  } else {
    for (int64_t p = 0; p < smaller(pixels, 8); ++p) {
      copy(tile[p % 4] + 16 * (p / 4), q + p * pitch, smaller(channels, 16));
    }
    for (int k = 0; k < 4; ++k) v[k] = _mm256_load_si256(reinterpret_cast<__m256i*>(tile[k]));
  }
  transpose4(v[0], v[1], v[2], v[3]);
  // Byte j of dword p of v[k] is channel 4 * k + j of pixel p.
  const __m256i low = _mm256_set1_epi32(0xff);
  for (int64_t c = 0; c < smaller(16, channels); ++c) {
    const __m256i code = _mm256_and_si256(
        _mm256_srl_epi32(v[c / 4], _mm_cvtsi32_si128(static_cast<int>(8 * (c % 4)))), low);
    if (pixels >= 8) {
      _mm256_storeu_ps(y + c * plane_stride, real(code, zero, scale));
    } else {
      alignas(32) float out[8];
      _mm256_store_ps(out, real(code, zero, scale));
      copy(y + c * plane_stride, out, pixels);
    }
  }
}

void dequantize_planes_u8_f32(const uint8_t* q, int64_t pixel_pitch, int64_t pixels,
                              int64_t channels, float scale, int32_t zero_point, float* y,
                              int64_t plane_stride) {
  const __m256i zero = _mm256_set1_epi32(zero_point);
  const __m256 s = _mm256_set1_ps(scale);
  for (int64_t block = 0; block < pixels; block += kBlockPixels) {
    const int64_t end = smaller(pixels, block + kBlockPixels);
    for (int64_t c = 0; c < channels; c += 16) {
      for (int64_t p = block; p < end; p += 8) {
        dequantize_block(q + p * pixel_pitch + c, pixel_pitch, end - p, channels - c, zero, s,
                         y + c * plane_stride + p, plane_stride);
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

}  // namespace octavo::avx2

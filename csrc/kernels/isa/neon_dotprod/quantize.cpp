// Quantize and dequantize runs and transposing blocks, sixteen floats at a time. Called by
// quantize.cpp and the dynamic products through the table; calls nothing. isa/scalar/quantize.cpp
// says what every result is.
#include "../../kernel_table.h"
#include "codes.h"

namespace octavo::neon_dotprod {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Rule {
  explicit Rule(const QuantizeRule& r)
      : inverse(vdupq_n_f32(r.inverse)),
        lo(vdupq_n_f32(r.lo)),
        hi(vdupq_n_f32(r.hi)),
        zero(vdupq_n_s16(static_cast<int16_t>(r.zero_point))) {}
  float32x4_t inverse, lo, hi;
  int16x8_t zero;
};

inline uint8x16_t codes(Floats f, const Rule& rule) {
  for (float32x4_t& v : f.v) v = vmulq_f32(v, rule.inverse);
  const int16x8x2_t r = round_clamped(f, rule.lo, rule.hi);
  return vqmovun_high_s16(vqmovun_s16(vaddq_s16(r.val[0], rule.zero)),
                          vaddq_s16(r.val[1], rule.zero));
}

void quantize_f32_u8(const float* x, int64_t count, const QuantizeRule& r, uint8_t* q) {
  const Rule rule(r);
  for (int64_t i = 0; i < count; i += 16) {
    store_codes(q + i, codes(load_floats(x + i, count - i), rule), count - i);
  }
}

inline void store_signed(int8_t* q, const Floats& f, float32x4_t lo, float32x4_t hi,
                         int64_t count) {
  const int16x8x2_t r = round_clamped(f, lo, hi);
  const int8x16_t bytes = vmovn_high_s16(vmovn_s16(r.val[0]), r.val[1]);
  store_codes(reinterpret_cast<uint8_t*>(q), vreinterpretq_u8_s8(bytes), count);
}

void quantize_f32_s8(const float* x, int64_t count, const QuantizeRule& r, int8_t* q) {
  const Rule rule(r);
  for (int64_t i = 0; i < count; i += 16) {
    Floats f = load_floats(x + i, count - i);
    for (float32x4_t& v : f.v) v = vmulq_f32(v, rule.inverse);
    store_signed(q + i, f, rule.lo, rule.hi, count - i);
  }
}

void quantize_columns_f32_s8(const float* x, int64_t columns, const float* inverse, float lo,
                             float hi, int8_t* q) {
  for (int64_t i = 0; i < columns; i += 16) {
    Floats f = load_floats(x + i, columns - i);
    const Floats by = load_floats(inverse + i, columns - i);
    for (int k = 0; k < 4; ++k) f.v[k] = vmulq_f32(f.v[k], by.v[k]);
    store_signed(q + i, f, vdupq_n_f32(lo), vdupq_n_f32(hi), columns - i);
  }
}

// Blocks of 16 pixels x 4 channels go through st4 and ld4, which interleave bytes.
void quantize_planes_f32_u8(const float* x, int64_t plane_stride, int64_t pixels, int64_t channels,
                            const QuantizeRule& r, uint8_t* q, int64_t pixel_pitch) {
  const Rule rule(r);
  for (int64_t p = 0; p < pixels; p += 16) {
    const int64_t some = smaller(pixels - p, 16);
    for (int64_t c = 0; c < channels; c += 4) {
      const int64_t planes = smaller(channels - c, 4);
      uint8x16x4_t plane{};
      for (int64_t k = 0; k < planes; ++k) {
        plane.val[k] = codes(load_floats(x + (c + k) * plane_stride + p, some), rule);
      }
      uint8_t block[64];
      vst4q_u8(block, plane);
      for (int64_t i = 0; i < some; ++i) {
        copy_some(q + (p + i) * pixel_pitch + c, block + 4 * i, planes);
      }
    }
  }
}

// float(q) - float(zero_point) is exact.
inline Floats reals(uint8x16_t q, float scale, int32_t zero_point) {
  Floats f = widen(q);
  for (float32x4_t& v : f.v) {
    v = vmulq_f32(vdupq_n_f32(scale), vsubq_f32(v, vdupq_n_f32(static_cast<float>(zero_point))));
  }
  return f;
}

void dequantize_u8_f32(const uint8_t* q, int64_t count, float scale, int32_t zero_point, float* y) {
  for (int64_t i = 0; i < count; i += 16) {
    store_floats(y + i, reals(load_codes(q + i, count - i), scale, zero_point), count - i);
  }
}

void dequantize_planes_u8_f32(const uint8_t* q, int64_t pixel_pitch, int64_t pixels,
                              int64_t channels, float scale, int32_t zero_point, float* y,
                              int64_t plane_stride) {
  for (int64_t p = 0; p < pixels; p += 16) {
    const int64_t some = smaller(pixels - p, 16);
    for (int64_t c = 0; c < channels; c += 4) {
      const int64_t planes = smaller(channels - c, 4);
      uint8_t block[64] = {};
      for (int64_t i = 0; i < some; ++i) {
        copy_some(block + 4 * i, q + (p + i) * pixel_pitch + c, planes);
      }
      const uint8x16x4_t plane = vld4q_u8(block);
      for (int64_t k = 0; k < planes; ++k) {
        store_floats(y + (c + k) * plane_stride + p, reals(plane.val[k], scale, zero_point), some);
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

}  // namespace octavo::neon_dotprod

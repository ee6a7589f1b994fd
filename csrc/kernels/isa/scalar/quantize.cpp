// Quantize and dequantize runs and transposing blocks: the specification in plain loops. Called by
// quantize.cpp and the dynamic products through the table; calls nothing.
#include "../../kernel_table.h"

namespace octavo::scalar {
namespace {

// NaN compares false, so it takes lo: the operand order of x86's maxps(v, lo).
float clamp(float v, float lo, float hi) {
  v = v > lo ? v : lo;
  return v < hi ? v : hi;
}

// Nearest, ties to even, for |v| < 2^22: the sum's last mantissa bit is worth 1.
int32_t rne(float v) { return static_cast<int32_t>((v + 0x1.8p23f) - 0x1.8p23f); }

int32_t code(float x, const QuantizeRule& rule) {
  return rne(clamp(x * rule.inverse, rule.lo, rule.hi)) + rule.zero_point;
}

void quantize_f32_u8(const float* x, int64_t count, const QuantizeRule& rule, uint8_t* q) {
  for (int64_t i = 0; i < count; ++i) q[i] = static_cast<uint8_t>(code(x[i], rule));
}

void quantize_f32_s8(const float* x, int64_t count, const QuantizeRule& rule, int8_t* q) {
  for (int64_t i = 0; i < count; ++i) q[i] = static_cast<int8_t>(code(x[i], rule));
}

void quantize_columns_f32_s8(const float* x, int64_t columns, const float* inverse, float lo,
                             float hi, int8_t* q) {
  for (int64_t c = 0; c < columns; ++c)
    q[c] = static_cast<int8_t>(rne(clamp(x[c] * inverse[c], lo, hi)));
}

void quantize_planes_f32_u8(const float* x, int64_t plane_stride, int64_t pixels, int64_t channels,
                            const QuantizeRule& rule, uint8_t* q, int64_t pixel_pitch) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = 0; p < pixels; ++p) {
      q[p * pixel_pitch + c] = static_cast<uint8_t>(code(x[c * plane_stride + p], rule));
    }
  }
}

float real(uint8_t q, float scale, int32_t zero_point) {
  return scale * static_cast<float>(static_cast<int32_t>(q) - zero_point);
}

void dequantize_u8_f32(const uint8_t* q, int64_t count, float scale, int32_t zero_point, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = real(q[i], scale, zero_point);
}

void dequantize_planes_u8_f32(const uint8_t* q, int64_t pixel_pitch, int64_t pixels,
                              int64_t channels, float scale, int32_t zero_point, float* y,
                              int64_t plane_stride) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = 0; p < pixels; ++p) {
      y[c * plane_stride + p] = real(q[p * pixel_pitch + c], scale, zero_point);
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

}  // namespace octavo::scalar

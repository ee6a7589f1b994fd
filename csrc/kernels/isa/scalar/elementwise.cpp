// Add, multiply, affine and table look-up on codes: the specification in plain loops. Called by
// elementwise.cpp through the table; calls nothing.
#include "../../kernel_table.h"

namespace octavo::scalar {
namespace {

// Clamps to codes and rounds to nearest even; NaN takes lo. Exact for |v| < 2^22, which holds after
// the clamp.
uint8_t code(float v, float lo, float hi) {
  v = v > lo ? v : lo;
  v = v < hi ? v : hi;
  return static_cast<uint8_t>(static_cast<int32_t>((v + 0x1.8p23f) - 0x1.8p23f));
}

void add_u8u8_u8(const uint8_t* a, const uint8_t* b, int64_t count, const AddRule& rule,
                 uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float vb = __builtin_fmaf(static_cast<float>(b[i]), rule.mb, rule.offset);
    out[i] = code(__builtin_fmaf(static_cast<float>(a[i]), rule.ma, vb), rule.lo, rule.hi);
  }
}

// |a - za| and |b - zb| are at most 255, so the product is exact in int32 and in float32.
uint8_t product(uint8_t a, uint8_t b, const MultiplyRule& rule) {
  const int32_t v = (static_cast<int32_t>(a) - rule.za) * (static_cast<int32_t>(b) - rule.zb);
  return code(__builtin_fmaf(static_cast<float>(v), rule.m, rule.offset), rule.lo, rule.hi);
}

void multiply_u8u8_u8(const uint8_t* a, const uint8_t* b, int64_t count, const MultiplyRule& rule,
                      uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = product(a[i], b[i], rule);
}

void multiply_pixels_u8u8_u8(const uint8_t* a, const uint8_t* b, const PixelRun& run,
                             const MultiplyRule& rule, uint8_t* out) {
  for (int64_t p = 0; p < run.pixels; ++p) {
    multiply_u8u8_u8(a + p * run.in_step, b, run.channels, rule, out + p * run.out_step);
  }
}

void affine_pixels_u8_u8(const uint8_t* x, const PixelRun& run, const float* m, const float* offset,
                         float lo, float hi, uint8_t* out) {
  for (int64_t p = 0; p < run.pixels; ++p) {
    for (int64_t c = 0; c < run.channels; ++c) {
      const float v = static_cast<float>(x[p * run.in_step + c]);
      out[p * run.out_step + c] = code(__builtin_fmaf(v, m[c], offset[c]), lo, hi);
    }
  }
}

void table_u8_u8(const uint8_t* x, int64_t count, const uint8_t* table, uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = table[x[i]];
}

void channel_table_u8_u8(const uint8_t* x, const PixelRun& run, const uint8_t* table,
                         uint8_t* out) {
  for (int64_t p = 0; p < run.pixels; ++p) {
    for (int64_t c = 0; c < run.channels; ++c) {
      out[p * run.out_step + c] = table[256 * c + x[p * run.in_step + c]];
    }
  }
}

}  // namespace

void fill_elementwise(ElementTable& t) {
  t.add_u8u8_u8 = add_u8u8_u8;
  t.multiply_u8u8_u8 = multiply_u8u8_u8;
  t.multiply_pixels_u8u8_u8 = multiply_pixels_u8u8_u8;
  t.affine_pixels_u8_u8 = affine_pixels_u8_u8;
  t.table_u8_u8 = table_u8_u8;
  t.channel_table_u8_u8 = channel_table_u8_u8;
}

}  // namespace octavo::scalar

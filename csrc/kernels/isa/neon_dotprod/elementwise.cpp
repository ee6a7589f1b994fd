// Add, multiply, affine and table look-up on codes, sixteen at a time. Called by elementwise.cpp
// through the table; calls nothing. isa/scalar/elementwise.cpp says what every result is.
#include "../../kernel_table.h"
#include "codes.h"

namespace octavo::neon_dotprod {
namespace {

struct Range {
  Range(float l, float h) : lo(vdupq_n_f32(l)), hi(vdupq_n_f32(h)) {}
  float32x4_t lo, hi;
};

void add_u8u8_u8(const uint8_t* a, const uint8_t* b, int64_t count, const AddRule& rule,
                 uint8_t* out) {
  const Range range(rule.lo, rule.hi);
  const float32x4_t ma = vdupq_n_f32(rule.ma), mb = vdupq_n_f32(rule.mb);
  const float32x4_t offset = vdupq_n_f32(rule.offset);
  for (int64_t i = 0; i < count; i += 16) {
    Floats fa = widen(load_codes(a + i, count - i));
    const Floats fb = widen(load_codes(b + i, count - i));
    for (int k = 0; k < 4; ++k) {
      fa.v[k] = vfmaq_f32(vfmaq_f32(offset, fb.v[k], mb), fa.v[k], ma);
    }
    store_codes(out + i, narrow(fa, range.lo, range.hi), count - i);
  }
}

/// Factors are integers of magnitude up to 255: differences and products are exact in float32.
struct Product {
  explicit Product(const MultiplyRule& rule)
      : za(vdupq_n_f32(static_cast<float>(rule.za))),
        zb(vdupq_n_f32(static_cast<float>(rule.zb))),
        m(vdupq_n_f32(rule.m)),
        offset(vdupq_n_f32(rule.offset)),
        range(rule.lo, rule.hi) {}
  uint8x16_t operator()(uint8x16_t a, uint8x16_t b) const {
    Floats fa = widen(a);
    const Floats fb = widen(b);
    for (int k = 0; k < 4; ++k) {
      const float32x4_t product = vmulq_f32(vsubq_f32(fa.v[k], za), vsubq_f32(fb.v[k], zb));
      fa.v[k] = vfmaq_f32(offset, product, m);
    }
    return narrow(fa, range.lo, range.hi);
  }
  float32x4_t za, zb, m, offset;
  Range range;
};

void multiply_u8u8_u8(const uint8_t* a, const uint8_t* b, int64_t count, const MultiplyRule& rule,
                      uint8_t* out) {
  const Product product(rule);
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = count - i;
    store_codes(out + i, product(load_codes(a + i, left), load_codes(b + i, left)), left);
  }
}

void multiply_pixels_u8u8_u8(const uint8_t* a, const uint8_t* b, const PixelRun& run,
                             const MultiplyRule& rule, uint8_t* out) {
  const Product product(rule);
  for (int64_t c = 0; c < run.channels; c += 16) {
    const int64_t left = run.channels - c;
    const uint8x16_t factors = load_codes(b + c, left);
    for (int64_t p = 0; p < run.pixels; ++p) {
      const uint8x16_t codes = load_codes(a + p * run.in_step + c, left);
      store_codes(out + p * run.out_step + c, product(codes, factors), left);
    }
  }
}

void affine_pixels_u8_u8(const uint8_t* x, const PixelRun& run, const float* m, const float* offset,
                         float lo, float hi, uint8_t* out) {
  const Range range(lo, hi);
  for (int64_t c = 0; c < run.channels; c += 16) {
    const int64_t left = run.channels - c;
    const Floats fm = load_floats(m + c, left), fo = load_floats(offset + c, left);
    for (int64_t p = 0; p < run.pixels; ++p) {
      Floats f = widen(load_codes(x + p * run.in_step + c, left));
      for (int k = 0; k < 4; ++k) f.v[k] = vfmaq_f32(fo.v[k], f.v[k], fm.v[k]);
      store_codes(out + p * run.out_step + c, narrow(f, range.lo, range.hi), left);
    }
  }
}

// A look-up in 64 bytes leaves other lanes alone (tbx); indices outside count from 64 up.
void table_u8_u8(const uint8_t* x, int64_t count, const uint8_t* table, uint8_t* out) {
  uint8x16x4_t quarter[4];
  for (int k = 0; k < 4; ++k) {
    for (int i = 0; i < 4; ++i) quarter[k].val[i] = vld1q_u8(table + 64 * k + 16 * i);
  }
  for (int64_t i = 0; i < count; i += 16) {
    const uint8x16_t codes = load_codes(x + i, count - i);
    uint8x16_t result = vqtbl4q_u8(quarter[0], codes);
    result = vqtbx4q_u8(result, quarter[1], vsubq_u8(codes, vdupq_n_u8(64)));
    result = vqtbx4q_u8(result, quarter[2], vsubq_u8(codes, vdupq_n_u8(128)));
    result = vqtbx4q_u8(result, quarter[3], vsubq_u8(codes, vdupq_n_u8(192)));
    store_codes(out + i, result, count - i);
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

}  // namespace octavo::neon_dotprod

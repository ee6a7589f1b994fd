// Sixteen codes as floats and back: what every kernel of this folder does around its arithmetic.
// Included by the folder's .cpp files only; everything has internal linkage.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace octavo::neon_dotprod {
namespace {

/// Sixteen values in order.
struct Floats {
  float32x4_t v[4];
};

/// Compare and select, so that NaN gives lo and signed zeros come out as the specification's.
[[maybe_unused]] inline float32x4_t clamp(float32x4_t v, float32x4_t lo, float32x4_t hi) {
  v = vbslq_f32(vcgtq_f32(v, lo), v, lo);
  return vbslq_f32(vcltq_f32(v, hi), v, hi);
}

[[maybe_unused]] inline Floats widen(uint8x16_t codes) {
  const uint16x8_t low = vmovl_u8(vget_low_u8(codes)), high = vmovl_high_u8(codes);
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_high_u16(low)),
           vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_high_u16(high))}};
}

/// Rounded to nearest even, as 16-bit integers; the values lie in [-255, 255] after the clamp.
[[maybe_unused]] inline int16x8x2_t round_clamped(const Floats& f, float32x4_t lo, float32x4_t hi) {
  int32x4_t r[4];
  for (int i = 0; i < 4; ++i) r[i] = vcvtnq_s32_f32(clamp(f.v[i], lo, hi));
  return {{vmovn_high_s32(vmovn_s32(r[0]), r[1]), vmovn_high_s32(vmovn_s32(r[2]), r[3])}};
}

/// Codes of values that the clamp brings to [0, 255].
[[maybe_unused]] inline uint8x16_t narrow(const Floats& f, float32x4_t lo, float32x4_t hi) {
  const int16x8x2_t r = round_clamped(f, lo, hi);
  return vqmovun_high_s16(vqmovun_s16(r.val[0]), r.val[1]);
}

template <class T>
inline void copy_some(T* to, const T* from, int64_t count) {
  __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
}

/// The first `count` <= 16 of sixteen codes, and where less than sixteen exist, zeros after them.
[[maybe_unused]] inline uint8x16_t load_codes(const uint8_t* from, int64_t count) {
  if (count >= 16) return vld1q_u8(from);
  uint8_t some[16] = {};
  copy_some(some, from, count);
  return vld1q_u8(some);
}

[[maybe_unused]] inline void store_codes(uint8_t* to, uint8x16_t codes, int64_t count) {
  if (count >= 16) {
    vst1q_u8(to, codes);
    return;
  }
  uint8_t some[16];
  vst1q_u8(some, codes);
  copy_some(to, some, count);
}

[[maybe_unused]] inline Floats load_floats(const float* from, int64_t count) {
  float some[16] = {};
  if (count < 16) {
    copy_some(some, from, count);
    from = some;
  }
  return {{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
}

[[maybe_unused]] inline void store_floats(float* to, const Floats& f, int64_t count) {
  float some[16];
  float* at = count < 16 ? some : to;
  for (int i = 0; i < 4; ++i) vst1q_f32(at + 4 * i, f.v[i]);
  if (count < 16) copy_some(to, some, count);
}

}  // namespace
}  // namespace octavo::neon_dotprod

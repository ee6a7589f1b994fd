// Fake quantization and its gradients: the specification in plain loops. Called by
// fake_quantize.cpp through the table; calls nothing.
#include <cstring>

#include "../../kernel_table.h"

namespace octavo::scalar {
namespace {

// ---- the three types of values
// --------------------------------------------------------------------

uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

float float_of(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

float widened(float v) { return v; }

float widened(Bf16 v) { return float_of(uint32_t{v.bits} << 16); }

float widened(F16 v) {
  const uint32_t sign = uint32_t{v.bits} >> 15 << 31;
  const uint32_t exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
  if (exponent == 31) {  // infinity, NaN
    return float_of(sign | 0x7f800000 | fraction << 13 | (fraction != 0 ? 0x400000 : 0));
  }
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = static_cast<float>(fraction) * 0x1p-24f;
  return sign != 0 ? -small : small;
}

void narrow(float v, float* to) { *to = v; }

// To nearest, ties to even; NaN keeps the upper bits of its payload and becomes quiet.
void narrow(float v, Bf16* to) {
  const uint32_t bits = bits_of(v);
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
  to->bits = static_cast<uint16_t>((v == v ? rounded : bits | 0x400000) >> 16);
}

void narrow(float v, F16* to) {
  const uint32_t bits = bits_of(v), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  uint32_t half;
  if (size > 0x7f800000) {
    half = 0x7e00 | (size >> 13 & 0x3ff);
  } else if (size >= 0x477ff000) {  // 65520 and more round to infinity
    half = 0x7c00;
  } else if (size >= 0x38800000) {  // 2^-14 and more
    half = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
  } else {
    // The sum's last mantissa bit is worth 2^-24, the smallest half.
    half = bits_of(float_of(size) + 0x1p-1f) - bits_of(0x1p-1f);
  }
  to->bits = static_cast<uint16_t>(sign | half);
}

// A gradient that passes, or 0. Signalling NaN become quiet.
template <class T>
void keep(bool passes, T dy, T* dx) {
  narrow(passes ? widened(dy) : 0.0f, dx);
}

// ---- the formula
// ----------------------------------------------------------------------------------

// Nearest, ties to even, for |v| < 2^22: the sum's last mantissa bit is worth 1. Gives +0 for 0.
float rne(float v) { return (v + 0x1.8p23f) - 0x1.8p23f; }

struct Scaled {
  float t, n;
  bool inside, passes, below_or_above;
};

// Comparisons are false for NaN, which therefore passes through lo and hi.
Scaled scaled(float x, const FakeRule& rule) {
  const float v = rule.relu && x <= 0.0f ? 0.0f : x;
  Scaled s;
  s.t = v * rule.inverse;
  float c = rule.lo > s.t ? rule.lo : s.t;
  c = rule.hi < c ? rule.hi : c;
  s.n = rne(c);
  s.inside = s.t >= rule.in_lo && s.t <= rule.in_hi;
  s.passes = s.inside && (!rule.relu || x > 0.0f);
  s.below_or_above = s.t < rule.in_lo || s.t > rule.in_hi;
  return s;
}

FakeRule rule_of(const FakeColumns& r, int64_t c) {
  return {r.inverse[c], r.scale[c], r.lo[c], r.hi[c], r.in_lo[c], r.in_hi[c], r.relu};
}

void set_bit(uint8_t* mask, int64_t i, bool bit) {
  if (i % 8 == 0) mask[i / 8] = 0;
  mask[i / 8] = static_cast<uint8_t>(mask[i / 8] | (bit ? 1 << i % 8 : 0));
}

template <class T>
void run(const void* from, int64_t count, const FakeRule& rule, void* to, uint8_t* mask, bool) {
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  for (int64_t i = 0; i < count; ++i) {
    const Scaled s = scaled(widened(x[i]), rule);
    narrow(s.n * rule.scale, &y[i]);
    if (mask != nullptr) set_bit(mask, i, s.passes);
  }
}

template <class T>
bool watched(const void* from, int64_t count, const FakeRule& rule, void* to, bool stream) {
  run<T>(from, count, rule, to, nullptr, stream);
  const T* x = static_cast<const T*>(from);
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite = finite && widened(x[i]) * 0.0f == 0.0f;
  return finite;
}

template <class T>
void columns(const void* from, int64_t rows, int64_t columns, const FakeColumns& rules, void* to,
             uint8_t* mask, bool) {
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  for (int64_t r = 0; r < rows; ++r, x += columns, y += columns) {
    for (int64_t c = 0; c < columns; ++c) {
      const Scaled s = scaled(widened(x[c]), rule_of(rules, c));
      narrow(s.n * rules.scale[c], &y[c]);
      if (mask != nullptr) set_bit(mask, c, s.passes);
    }
    if (mask != nullptr) mask += (columns + 7) / 8;
  }
}

template <class T>
void masked(const void* from, int64_t count, const uint8_t* mask, void* to, bool) {
  const T* dy = static_cast<const T*>(from);
  T* dx = static_cast<T*>(to);
  for (int64_t i = 0; i < count; ++i) keep((mask[i / 8] >> i % 8 & 1) != 0, dy[i], &dx[i]);
}

template <class T>
void learned(const void* gradient, const void* from, int64_t count, const FakeRule& rule, void* to,
             FakeSums* sums, bool) {
  const T *dy = static_cast<const T*>(gradient), *x = static_cast<const T*>(from);
  T* dx = static_cast<T*>(to);
  *sums = {};
  for (int64_t i = 0; i < count; ++i) {
    const Scaled s = scaled(widened(x[i]), rule);
    const float d = widened(dy[i]);
    sums->scale[i % 16] += static_cast<double>(d * (s.n - (s.inside ? s.t : 0.0f)));
    sums->zero[i % 16] += static_cast<double>(s.below_or_above ? d : 0.0f);
    keep(s.passes, dy[i], &dx[i]);
  }
}

template <class T>
void learned_columns(const void* gradient, const void* from, int64_t rows, int64_t columns,
                     const FakeColumns& rules, void* to, double* to_scale, double* to_zero) {
  const T *dy = static_cast<const T*>(gradient), *x = static_cast<const T*>(from);
  T* dx = static_cast<T*>(to);
  for (int64_t r = 0; r < rows; ++r, x += columns, dy += columns, dx += columns) {
    for (int64_t c = 0; c < columns; ++c) {
      const Scaled s = scaled(widened(x[c]), rule_of(rules, c));
      const float d = widened(dy[c]);
      to_scale[c] += static_cast<double>(d * (s.n - (s.inside ? s.t : 0.0f)));
      if (to_zero != nullptr) to_zero[c] += static_cast<double>(s.below_or_above ? d : 0.0f);
      keep(s.passes, dy[c], &dx[c]);
    }
  }
}

template <class T>
void clipped(const void* gradient, const void* from, int64_t count, float top, void* to,
             FakeSums* sums) {
  const T *dy = static_cast<const T*>(gradient), *x = static_cast<const T*>(from);
  T* dx = static_cast<T*>(to);
  *sums = {};
  for (int64_t i = 0; i < count; ++i) {
    const float v = widened(x[i]);
    sums->scale[i % 16] += static_cast<double>(v >= top ? widened(dy[i]) : 0.0f);
    keep(v > 0.0f && v < top, dy[i], &dx[i]);
  }
}

// NaN stays NaN.
float nearest(float t, const LevelTable& table) {
  int32_t index = 0;
  for (int32_t i = 0; i + 1 < table.count; ++i) index += t > table.middle[i];
  return t == t ? table.level[index] : t;
}

template <class T>
void levels(const void* from, int64_t count, const LevelRule& rule, void* to) {
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  for (int64_t i = 0; i < count; ++i) {
    narrow(nearest(widened(x[i]) * rule.inverse, *rule.table) * rule.scale, &y[i]);
  }
}

template <class T>
void levels_gradient(const void* gradient, const void* from, int64_t count, const LevelRule& rule,
                     void* to, FakeSums* sums) {
  const T *dy = static_cast<const T*>(gradient), *x = static_cast<const T*>(from);
  T* dx = static_cast<T*>(to);
  const LevelTable& table = *rule.table;
  *sums = {};
  for (int64_t i = 0; i < count; ++i) {
    const float t = widened(x[i]) * rule.inverse;
    const bool inside = t >= table.level[0] && t <= table.level[table.count - 1];
    const float n = nearest(t, table);
    sums->scale[i % 16] += static_cast<double>(widened(dy[i]) * (n - (inside ? t : 0.0f)));
    if (dx != nullptr) keep(inside || !rule.clip, dy[i], &dx[i]);
  }
}

template <class T>
void widen(const void* from, int64_t count, float* y) {
  const T* x = static_cast<const T*>(from);
  for (int64_t i = 0; i < count; ++i) y[i] = widened(x[i]);
}

template <class T>
FakeKernels kernels() {
  return {run<T>,     watched<T>, columns<T>,         masked<T>, learned<T>, learned_columns<T>,
          clipped<T>, levels<T>,  levels_gradient<T>, widen<T>};
}

}  // namespace

void fill_fake_quantize(FakeQuantizeTable& t) {
  t.of[0] = kernels<float>();
  t.of[1] = kernels<Bf16>();
  t.of[2] = kernels<F16>();
}

}  // namespace octavo::scalar

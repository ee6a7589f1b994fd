// Fake quantization, four floats a register, four registers at a time. Called by fake_quantize.cpp
// through the table; the loops are fake_quantize_lanes.h's. isa/scalar/fake_quantize.cpp says what
// every result is.
#include <arm_neon.h>

#include "../../fake_quantize_lanes.h"
#include "../../kernel_table.h"

namespace octavo::neon_dotprod {
namespace {

inline float32x4_t widen(uint16x4_t v, const Bf16*) {
  return vreinterpretq_f32_u32(vshll_n_u16(v, 16));
}
inline float32x4_t widen(uint16x4_t v, const F16*) { return vcvt_f32_f16(vreinterpret_f16_u16(v)); }

// To nearest, ties to even; NaN keeps the upper bits of its payload and becomes quiet.
inline uint16x4_t narrow(float32x4_t v, const Bf16*) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t r = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), r, quiet), 16);
}
inline uint16x4_t narrow(float32x4_t v, const F16*) {
  return vreinterpret_u16_f16(vcvt_f16_f32(v));
}

struct Lanes {
  struct F {
    float32x4_t v[4];
  };
  struct M {
    uint32x4_t v[4];
  };
  struct D {
    float64x2_t v[8];
  };

  static F set(float v) {
    const float32x4_t all = vdupq_n_f32(v);
    return {{all, all, all, all}};
  }

  static F load(const float* p) {
    return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
  }
  template <class T>
  static F load(const T* p) {
    const auto* bits = reinterpret_cast<const uint16_t*>(p);
    F f;
    for (int i = 0; i < 4; ++i) f.v[i] = widen(vld1_u16(bits + 4 * i), p);
    return f;
  }
  template <class T>
  static F load(const T* p, int64_t count) {
    T some[16] = {};
    __builtin_memcpy(some, p, static_cast<size_t>(count) * sizeof(T));
    return load(some);
  }

  static void store(float* p, F f) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, f.v[i]);
  }
  template <class T>
  static void store(T* p, F f) {
    auto* bits = reinterpret_cast<uint16_t*>(p);
    for (int i = 0; i < 4; ++i) vst1_u16(bits + 4 * i, narrow(f.v[i], p));
  }
  template <class T>
  static void store(T* p, F f, int64_t count) {
    T some[16];
    store(some, f);
    __builtin_memcpy(p, some, static_cast<size_t>(count) * sizeof(T));
  }
  // Stores past the caches have no intrinsic here.
  template <class T>
  static void stream(T* p, F f) {
    store(p, f);
  }

  static F add(F a, F b) {
    for (int i = 0; i < 4; ++i) a.v[i] = vaddq_f32(a.v[i], b.v[i]);
    return a;
  }
  static F sub(F a, F b) {
    for (int i = 0; i < 4; ++i) a.v[i] = vsubq_f32(a.v[i], b.v[i]);
    return a;
  }
  static F mul(F a, F b) {
    for (int i = 0; i < 4; ++i) a.v[i] = vmulq_f32(a.v[i], b.v[i]);
    return a;
  }
  static F above(F bound, F v) {
    for (int i = 0; i < 4; ++i) {
      v.v[i] = vbslq_f32(vcgtq_f32(bound.v[i], v.v[i]), bound.v[i], v.v[i]);
    }
    return v;
  }
  static F below(F bound, F v) {
    for (int i = 0; i < 4; ++i) {
      v.v[i] = vbslq_f32(vcltq_f32(bound.v[i], v.v[i]), bound.v[i], v.v[i]);
    }
    return v;
  }

  static M ge(F a, F b) {
    M m;
    for (int i = 0; i < 4; ++i) m.v[i] = vcgeq_f32(a.v[i], b.v[i]);
    return m;
  }
  static M le(F a, F b) { return ge(b, a); }
  static M gt(F a, F b) {
    M m;
    for (int i = 0; i < 4; ++i) m.v[i] = vcgtq_f32(a.v[i], b.v[i]);
    return m;
  }
  static M lt(F a, F b) { return gt(b, a); }
  static M both(M a, M b) {
    for (int i = 0; i < 4; ++i) a.v[i] = vandq_u32(a.v[i], b.v[i]);
    return a;
  }
  static M either(M a, M b) {
    for (int i = 0; i < 4; ++i) a.v[i] = vorrq_u32(a.v[i], b.v[i]);
    return a;
  }
  static F keep(M m, F f) {
    for (int i = 0; i < 4; ++i) {
      f.v[i] = vreinterpretq_f32_u32(vandq_u32(m.v[i], vreinterpretq_u32_f32(f.v[i])));
    }
    return f;
  }
  static uint32_t bits(M m) {
    const uint32x4_t weight = {1, 2, 4, 8};
    uint32_t all = 0;
    for (int i = 0; i < 4; ++i) all |= vaddvq_u32(vandq_u32(m.v[i], weight)) << (4 * i);
    return all;
  }
  static M truth(uint32_t bits) {
    const uint32x4_t weight = {1, 2, 4, 8};
    M m;
    for (int i = 0; i < 4; ++i) m.v[i] = vtstq_u32(vdupq_n_u32(bits >> (4 * i)), weight);
    return m;
  }

  static D zeros() {
    D d;
    for (float64x2_t& v : d.v) v = vdupq_n_f64(0.0);
    return d;
  }
  static void gather(D& d, F f) {
    for (int i = 0; i < 4; ++i) {
      d.v[2 * i] = vaddq_f64(d.v[2 * i], vcvt_f64_f32(vget_low_f32(f.v[i])));
      d.v[2 * i + 1] = vaddq_f64(d.v[2 * i + 1], vcvt_high_f64_f32(f.v[i]));
    }
  }
  static D sums(const double* from, int64_t count) {
    double some[16] = {};
    __builtin_memcpy(some, from, static_cast<size_t>(count) * 8);
    D d;
    for (int i = 0; i < 8; ++i) d.v[i] = vld1q_f64(some + 2 * i);
    return d;
  }
  static void spill(const D& d, double* to, int64_t count) {
    double some[16];
    for (int i = 0; i < 8; ++i) vst1q_f64(some + 2 * i, d.v[i]);
    __builtin_memcpy(to, some, static_cast<size_t>(count) * 8);
  }

  // The differences of all levels passed, summed (small integers, exact).
  struct Nearest {
    const LevelTable& table;
    explicit Nearest(const LevelTable& t) : table(t) {}
    F operator()(F t) const {
      F level = set(table.level[0]);
      for (int32_t i = 0; i + 1 < table.count; ++i) {
        const F step = set(table.level[i + 1] - table.level[i]);
        level = add(level, keep(gt(t, set(table.middle[i])), step));
      }
      for (int i = 0; i < 4; ++i) {
        level.v[i] = vbslq_f32(vceqq_f32(t.v[i], t.v[i]), level.v[i], t.v[i]);
      }
      return level;
    }
  };
};

}  // namespace

void fill_fake_quantize(FakeQuantizeTable& t) { fill_with_lanes<Lanes>(t); }

}  // namespace octavo::neon_dotprod

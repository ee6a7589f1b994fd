// Fake quantization, sixteen floats a register. Called by fake_quantize.cpp through the table; the
// loops are fake_quantize_lanes.h's. isa/scalar/fake_quantize.cpp says what every result is.
#include <immintrin.h>

#include "../../fake_quantize_lanes.h"
#include "../../kernel_table.h"

namespace octavo::avx512_vnni {
namespace {

inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

inline __m512 widen_bf16(__m256i v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

// To nearest, ties to even; NaN keeps the upper bits of its payload and becomes quiet.
inline __m256i narrow_bf16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}

inline __m256i narrow_f16(__m512 v) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

struct Lanes {
  using F = __m512;
  using M = __mmask16;
  struct D {
    __m512d low, high;
  };

  static F set(float v) { return _mm512_set1_ps(v); }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const Bf16* p) {
    return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load(const F16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load(const float* p, int64_t count) {
    return _mm512_maskz_loadu_ps(first_lanes(count), p);
  }
  static F load(const Bf16* p, int64_t count) {
    return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(count), p));
  }
  static F load(const F16* p, int64_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count), p));
  }

  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store(Bf16* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(v));
  }
  static void store(F16* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_f16(v));
  }
  static void store(float* p, F v, int64_t count) {
    _mm512_mask_storeu_ps(p, first_lanes(count), v);
  }
  static void store(Bf16* p, F v, int64_t count) {
    _mm256_mask_storeu_epi16(p, first_lanes(count), narrow_bf16(v));
  }
  static void store(F16* p, F v, int64_t count) {
    _mm256_mask_storeu_epi16(p, first_lanes(count), narrow_f16(v));
  }
  static void stream(float* p, F v) { _mm512_stream_ps(p, v); }
  static void stream(Bf16* p, F v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(v));
  }
  static void stream(F16* p, F v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow_f16(v));
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F above(F bound, F v) { return _mm512_max_ps(bound, v); }
  static F below(F bound, F v) { return _mm512_min_ps(bound, v); }

  static M ge(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static M le(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  static M gt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static M lt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static M both(M a, M b) { return static_cast<M>(a & b); }
  static M either(M a, M b) { return static_cast<M>(a | b); }
  static F keep(M m, F v) { return _mm512_maskz_mov_ps(m, v); }
  static uint32_t bits(M m) { return m; }
  static M truth(uint32_t bits) { return static_cast<M>(bits); }

  static D zeros() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
  static __m512d low(F v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
  static __m512d high(F v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }
  static void gather(D& d, F v) {
    d.low = _mm512_add_pd(d.low, low(v));
    d.high = _mm512_add_pd(d.high, high(v));
  }
  static D sums(const double* from, int64_t count) {
    const __mmask16 mask = count >= 16 ? 0xffff : first_lanes(count);
    return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from),
            _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask >> 8), from + 8)};
  }
  static void spill(const D& d, double* to, int64_t count) {
    const __mmask16 mask = count >= 16 ? 0xffff : first_lanes(count);
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), d.low);
    _mm512_mask_storeu_pd(to + 8, static_cast<__mmask8>(mask >> 8), d.high);
  }

  // Binary search: in registers up to 32 levels, else in memory.
  struct Nearest {
    const LevelTable& table;
    const F level0, level1, middle0, middle1;
    int32_t first_step = 1;
    explicit Nearest(const LevelTable& t)
        : table(t),
          level0(_mm512_loadu_ps(t.level)),
          level1(_mm512_loadu_ps(t.level + 16)),
          middle0(_mm512_loadu_ps(t.middle)),
          middle1(_mm512_loadu_ps(t.middle + 16)) {
      while (2 * first_step < t.count) first_step *= 2;
    }

    template <class Look>
    static __m512i search(F t, int32_t step, Look&& look) {
      __m512i index = _mm512_setzero_si512();
      for (; step > 0; step /= 2) {
        const F middle = look(_mm512_add_epi32(index, _mm512_set1_epi32(step - 1)));
        index = _mm512_mask_add_epi32(index, gt(t, middle), index, _mm512_set1_epi32(step));
      }
      return index;
    }

    F operator()(F t) const {
      F level;
      if (table.count <= 16) {
        level = _mm512_permutexvar_ps(
            search(t, 8, [&](__m512i i) { return _mm512_permutexvar_ps(i, middle0); }), level0);
      } else if (table.count <= 32) {
        level = _mm512_permutex2var_ps(
            level0,
            search(t, 16, [&](__m512i i) { return _mm512_permutex2var_ps(middle0, i, middle1); }),
            level1);
      } else {
        level = _mm512_i32gather_ps(
            search(t, first_step,
                   [&](__m512i i) { return _mm512_i32gather_ps(i, table.middle, 4); }),
            table.level, 4);
      }
      return _mm512_mask_mov_ps(level, _mm512_cmp_ps_mask(t, t, _CMP_UNORD_Q), t);
    }
  };
};

}  // namespace

void fill_fake_quantize(FakeQuantizeTable& t) { fill_with_lanes<Lanes>(t); }

}  // namespace octavo::avx512_vnni

// Fake quantization, eight floats a register, two registers at a time. Called by fake_quantize.cpp
// through the table; the loops are fake_quantize_lanes.h's. isa/scalar/fake_quantize.cpp says what
// every result is.
#include <immintrin.h>

#include "../../fake_quantize_lanes.h"
#include "../../kernel_table.h"

namespace octavo::avx2 {
namespace {

inline __m256 widen(__m128i v, const Bf16*) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
inline __m256 widen(__m128i v, const F16*) { return _mm256_cvtph_ps(v); }

// To nearest, ties to even; NaN keeps the upper bits of its payload and becomes quiet.
inline __m256i rounded_bf16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i r = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  return _mm256_srli_epi32(_mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(r),
                                                                _mm256_castsi256_ps(quiet), nan)),
                           16);
}
inline __m256i narrow(__m256 a, __m256 b, const Bf16*) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded_bf16(a), rounded_bf16(b)), 0xd8);
}
inline __m256i narrow(__m256 a, __m256 b, const F16*) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return _mm256_set_m128i(_mm256_cvtps_ph(b, kNearest), _mm256_cvtps_ph(a, kNearest));
}

struct Lanes {
  struct F {
    __m256 v[2];
  };
  using M = F;
  struct D {
    __m256d v[4];
  };

  static F set(float v) { return {{_mm256_set1_ps(v), _mm256_set1_ps(v)}}; }

  static F load(const float* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
  template <class T>
  static F load(const T* p) {
    const auto* from = reinterpret_cast<const __m128i*>(p);
    return {{widen(_mm_loadu_si128(from), p), widen(_mm_loadu_si128(from + 1), p)}};
  }
  template <class T>
  static F load(const T* p, int64_t count) {
    T some[16] = {};
    __builtin_memcpy(some, p, static_cast<size_t>(count) * sizeof(T));
    return load(some);
  }

  static void store(float* p, F f) {
    _mm256_storeu_ps(p, f.v[0]);
    _mm256_storeu_ps(p + 8, f.v[1]);
  }
  template <class T>
  static void store(T* p, F f) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(f.v[0], f.v[1], p));
  }
  template <class T>
  static void store(T* p, F f, int64_t count) {
    T some[16];
    store(some, f);
    __builtin_memcpy(p, some, static_cast<size_t>(count) * sizeof(T));
  }
  static void stream(float* p, F f) {
    _mm256_stream_ps(p, f.v[0]);
    _mm256_stream_ps(p + 8, f.v[1]);
  }
  template <class T>
  static void stream(T* p, F f) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(f.v[0], f.v[1], p));
  }

  template <class Op>
  static F each(F a, F b, Op&& op) {
    return {{op(a.v[0], b.v[0]), op(a.v[1], b.v[1])}};
  }
  static F add(F a, F b) {
    return each(a, b, [](__m256 x, __m256 y) { return _mm256_add_ps(x, y); });
  }
  static F sub(F a, F b) {
    return each(a, b, [](__m256 x, __m256 y) { return _mm256_sub_ps(x, y); });
  }
  static F mul(F a, F b) {
    return each(a, b, [](__m256 x, __m256 y) { return _mm256_mul_ps(x, y); });
  }
  static F above(F bound, F v) {
    return each(bound, v, [](__m256 x, __m256 y) { return _mm256_max_ps(x, y); });
  }
  static F below(F bound, F v) {
    return each(bound, v, [](__m256 x, __m256 y) { return _mm256_min_ps(x, y); });
  }

  static M ge(F a, F b) {
    return each(a, b, [](__m256 x, __m256 y) { return _mm256_cmp_ps(x, y, _CMP_GE_OQ); });
  }
  static M le(F a, F b) {
    return each(a, b, [](__m256 x, __m256 y) { return _mm256_cmp_ps(x, y, _CMP_LE_OQ); });
  }
  static M gt(F a, F b) {
    return each(a, b, [](__m256 x, __m256 y) { return _mm256_cmp_ps(x, y, _CMP_GT_OQ); });
  }
  static M lt(F a, F b) {
    return each(a, b, [](__m256 x, __m256 y) { return _mm256_cmp_ps(x, y, _CMP_LT_OQ); });
  }
  static M both(M a, M b) {
    return each(a, b, [](__m256 x, __m256 y) { return _mm256_and_ps(x, y); });
  }
  static M either(M a, M b) {
    return each(a, b, [](__m256 x, __m256 y) { return _mm256_or_ps(x, y); });
  }
  static F keep(M m, F v) { return both(m, v); }
  static uint32_t bits(M m) {
    return static_cast<uint32_t>(_mm256_movemask_ps(m.v[0]) | _mm256_movemask_ps(m.v[1]) << 8);
  }
  static M truth(uint32_t bits) {
    const __m256i all = _mm256_set1_epi32(static_cast<int32_t>(bits));
    const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i high = _mm256_slli_epi32(low, 8);
    return {{_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, low), low)),
             _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, high), high))}};
  }

  static D zeros() {
    const __m256d zero = _mm256_setzero_pd();
    return {{zero, zero, zero, zero}};
  }
  static void gather(D& d, F f) {
    for (int i = 0; i < 2; ++i) {
      const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(f.v[i]));
      const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(f.v[i], 1));
      d.v[2 * i] = _mm256_add_pd(d.v[2 * i], low);
      d.v[2 * i + 1] = _mm256_add_pd(d.v[2 * i + 1], high);
    }
  }
  static D sums(const double* from, int64_t count) {
    double some[16] = {};
    __builtin_memcpy(some, from, static_cast<size_t>(count) * 8);
    D d;
    for (int i = 0; i < 4; ++i) d.v[i] = _mm256_loadu_pd(some + 4 * i);
    return d;
  }
  static void spill(const D& d, double* to, int64_t count) {
    double some[16];
    for (int i = 0; i < 4; ++i) _mm256_storeu_pd(some + 4 * i, d.v[i]);
    __builtin_memcpy(to, some, static_cast<size_t>(count) * 8);
  }

  // Up to 32 levels: the differences of all levels passed, summed (small integers, exact). More:
  // binary search in memory.
  struct Nearest {
    const LevelTable& table;
    int32_t first_step = 1;
    explicit Nearest(const LevelTable& t) : table(t) {
      while (2 * first_step < t.count) first_step *= 2;
    }

    F summed(F t) const {
      F level = set(table.level[0]);
      for (int32_t i = 0; i + 1 < table.count; ++i) {
        const F step = set(table.level[i + 1] - table.level[i]);
        level = add(level, keep(gt(t, set(table.middle[i])), step));
      }
      return level;
    }

    __m256 searched(__m256 t) const {
      __m256i index = _mm256_setzero_si256();
      for (int32_t step = first_step; step > 0; step /= 2) {
        const __m256i at = _mm256_add_epi32(index, _mm256_set1_epi32(step - 1));
        const __m256 middle = _mm256_i32gather_ps(table.middle, at, 4);
        const __m256i more = _mm256_castps_si256(_mm256_cmp_ps(t, middle, _CMP_GT_OQ));
        index = _mm256_add_epi32(index, _mm256_and_si256(more, _mm256_set1_epi32(step)));
      }
      return _mm256_i32gather_ps(table.level, index, 4);
    }

    F operator()(F t) const {
      F level = table.count <= 32 ? summed(t) : F{{searched(t.v[0]), searched(t.v[1])}};
      for (int i = 0; i < 2; ++i) {
        const __m256 nan = _mm256_cmp_ps(t.v[i], t.v[i], _CMP_UNORD_Q);
        level.v[i] = _mm256_blendv_ps(level.v[i], t.v[i], nan);
      }
      return level;
    }
  };
};

}  // namespace

void fill_fake_quantize(FakeQuantizeTable& t) { fill_with_lanes<Lanes>(t); }

}  // namespace octavo::avx2

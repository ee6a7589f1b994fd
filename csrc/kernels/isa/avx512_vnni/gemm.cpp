// Dense products by vpdpbusd on 512-bit registers: tiles of up to 14 pixels x 32 channels (28
// accumulators, 2 weight vectors, 1 activation), epilogue in registers. Filled into the row by
// table.cpp; called by product_dense.cpp. Panels: kVnni.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx512_vnni {
namespace {

enum class Result { kCodes, kCodesResidual, kFloats, kRows };

/// sum += a . b over the four bytes of every dword. Inline assembly: around the intrinsic GCC 12
/// spills accumulators once the loop has more than one induction variable (54 to 106 stack moves,
/// half the speed).
inline __attribute__((always_inline)) void dot(__m512i& sum, __m512i a_u8, __m512i b_s8) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a_u8), "v"(b_s8));
}

/// What a tile works on: up to two stretches of pixels (pointers to column 0), and columns.
struct Place {
  const uint8_t* a[2];
  uint8_t* out[2];
  const uint8_t* residual[2];
  float* out_f32[2];
  int64_t x;  // of the first stretch
  int64_t column;
  int64_t columns;  // that exist from there
};

/// Four activations at p + kTimes * pitch in every dword. Inline assembly: GCC would keep the
/// address of every row in a register, run out of registers, and move some out of vector registers
/// inside the loop (3 % slower).
template <int kTimes>
inline __attribute__((always_inline)) __m512i broadcast4(const uint8_t* p, int64_t pitch) {
  __m512i v;
  if constexpr (kTimes == 0) {
    __asm__("vpbroadcastd (%1), %0" : "=v"(v) : "r"(p));
  } else if constexpr (kTimes == 1) {
    __asm__("vpbroadcastd (%1,%2), %0" : "=v"(v) : "r"(p), "r"(pitch));
  } else {
    __asm__("vpbroadcastd (%1,%2,2), %0" : "=v"(v) : "r"(p), "r"(pitch));
  }
  return v;
}

/// Products of row kRow and those after it. Row r of a stretch is addressed from base r / 3.
template <int kRow, int M0, int M, int V>
inline __attribute__((always_inline)) void multiply_rows(__m512i (&sum)[M][V],
                                                         const __m512i (&w)[V],
                                                         const uint8_t* const* base,
                                                         int64_t pitch) {
  if constexpr (kRow < M) {
    constexpr int kInStretch = kRow < M0 ? kRow : kRow - M0;
    constexpr int kBase = (kRow < M0 ? 0 : (M0 + 2) / 3) + kInStretch / 3;
    const __m512i a = broadcast4<kInStretch % 3>(base[kBase], pitch);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) dot(sum[kRow][v], a, w[v]);
    multiply_rows<kRow + 1, M0, M, V>(sum, w, base, pitch);
  }
}

inline __mmask16 lanes(int64_t columns, int v) {
  const int64_t left = columns - 16 * v;
  return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

/// float(sum) * scale + offset, and the residual of 16 channels at r (read whole: activations have
/// kSlack).
template <Result kResult>
inline __attribute__((always_inline)) __m512i to_int(__m512i sum, __m512 scale, __m512 offset,
                                                     const uint8_t* r, __m512 residual_scale,
                                                     __m512 hi) {
  __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, offset);
  if constexpr (kResult == Result::kCodesResidual) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(r));
    v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)), residual_scale, v);
  }
  // Only the upper end needs a clamp before the conversion, which turns values that are too small,
  // and NaN (which min returns, as its second operand), into INT_MIN; the packs saturate that to 0.
  return _mm512_cvtps_epi32(_mm512_min_ps(hi, v));
}

/// 64 codes from four vectors: in-lane packs, then a transposition of the 4 x 4 dwords puts the
/// channels of v0, v1, v2, v3 one after the other.
inline __attribute__((always_inline)) __m512i to_codes(__m512i v0, __m512i v1, __m512i v2,
                                                       __m512i v3, __m512i order, __m512i lo) {
  const __m512i codes = _mm512_packus_epi16(_mm512_packs_epi32(v0, v1), _mm512_packs_epi32(v2, v3));
  return _mm512_permutexvar_epi32(order, _mm512_max_epu8(codes, lo));
}

/// Epilogue to codes: rows in pairs (32 channels) or fours (16 channels), 64 codes at a time.
template <int M0, int M1, int V, Result kResult, bool kFull>
inline __attribute__((always_inline)) void finish_codes(const GemmJob& job, const Place& place,
                                                        __m512i (&sum)[M0 + M1][V]) {
  constexpr int M = M0 + M1;
  __m512 scale[V], offset[V];
  __mmask64 bytes = 0;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const __mmask16 mask = kFull ? 0xffff : lanes(place.columns, v);
    scale[v] = _mm512_maskz_loadu_ps(mask, job.scale + place.column + 16 * v);
    offset[v] = _mm512_maskz_loadu_ps(mask, job.offset + place.column + 16 * v);
    bytes |= static_cast<__mmask64>(mask) << (16 * v);
  }
  const __m512 hi = _mm512_set1_ps(job.hi), residual_scale = _mm512_set1_ps(job.residual_scale);
  // Rounding keeps order, so clamping to the rounded ends after it is the same as clamping to the
  // ends before.
  const __m512i lo = _mm512_set1_epi8(static_cast<char>(_mm_cvtss_si32(_mm_set_ss(job.lo))));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  // Copies, because stores of codes may alias every field of the job.
  const int64_t out_pitch = job.out_pixel_pitch, r_pitch = job.residual_pixel_pitch;
  uint8_t* const out[2] = {place.out[0] + place.column,
                           M1 > 0 ? place.out[1] + place.column : nullptr};
  constexpr bool kAdds = kResult == Result::kCodesResidual;
  const uint8_t* const r[2] = {kAdds ? place.residual[0] + place.column : nullptr,
                               kAdds && M1 > 0 ? place.residual[1] + place.column : nullptr};
  constexpr int kRowsAtOnce = 4 / V;
#pragma GCC unroll 16
  for (int i = 0; i < M; i += kRowsAtOnce) {
    __m512i q[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const int row = i + j / V, v = j % V;
      if (row < M) {
        const uint8_t* at = nullptr;
        if constexpr (kResult == Result::kCodesResidual) {
          at = (row < M0 ? r[0] + row * r_pitch : r[1] + (row - M0) * r_pitch) + 16 * v;
        }
        q[j] = to_int<kResult>(sum[row][v], scale[v], offset[v], at, residual_scale, hi);
      } else {
        q[j] = q[0];
      }
    }
    const __m512i codes = to_codes(q[0], q[1], q[2], q[3], order, lo);
#pragma GCC unroll 4
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const int row = i + j;
      if (row >= M) break;
      uint8_t* to = row < M0 ? out[0] + row * out_pitch : out[1] + (row - M0) * out_pitch;
      if constexpr (V == 4) {
        if constexpr (kFull) {
          _mm512_storeu_si512(to, codes);
        } else {
          _mm512_mask_storeu_epi8(to, bytes, codes);
        }
      } else if constexpr (V == 2) {
        const __m256i part =
            j == 0 ? _mm512_castsi512_si256(codes) : _mm512_extracti64x4_epi64(codes, 1);
        if constexpr (kFull) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), part);
        } else {
          _mm256_mask_storeu_epi8(to, static_cast<__mmask32>(bytes), part);
        }
      } else {
        const __m128i part = j == 0   ? _mm512_castsi512_si128(codes)
                             : j == 1 ? _mm512_extracti32x4_epi32(codes, 1)
                             : j == 2 ? _mm512_extracti32x4_epi32(codes, 2)
                                      : _mm512_extracti32x4_epi32(codes, 3);
        if constexpr (kFull) {
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to), part);
        } else {
          _mm_mask_storeu_epi8(to, static_cast<__mmask16>(bytes), part);
        }
      }
    }
  }
}

/// Epilogue to floats.
template <int M0, int M1, int V, Result kResult>
inline __attribute__((always_inline)) void finish_floats(const GemmJob& job, const Place& place,
                                                         __m512i (&sum)[M0 + M1][V]) {
  constexpr int M = M0 + M1;
  const __m512 lo = _mm512_set1_ps(job.lo), hi = _mm512_set1_ps(job.hi);
  const int64_t pitch = job.f32_pixel_pitch;
  const int32_t* zero = job.row_zero;
  const float* row_scale = job.row_scale;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const int64_t n = place.column + 16 * v;
    const __mmask16 mask = lanes(place.columns, v);
    const __m512 scale = _mm512_maskz_loadu_ps(mask, job.scale + n);
    const __m512 offset = _mm512_maskz_loadu_ps(mask, job.offset + n);
    __m512i colsum = _mm512_setzero_si512();
    if constexpr (kResult == Result::kRows) {
      colsum = _mm512_maskz_loadu_epi32(mask, job.colsum + n);
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      float* to = (i < M0 ? place.out_f32[0] + i * pitch : place.out_f32[1] + (i - M0) * pitch) + n;
      __m512 value;
      if constexpr (kResult == Result::kRows) {
        const int64_t x = place.x + i;
        const __m512i exact =
            _mm512_sub_epi32(sum[i][v], _mm512_mullo_epi32(_mm512_set1_epi32(zero[x]), colsum));
        const __m512 row = _mm512_mul_ps(_mm512_set1_ps(row_scale[x]), scale);
        value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), row, offset);
      } else {
        value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][v]), scale, offset);
        value = _mm512_min_ps(_mm512_max_ps(value, lo), hi);
      }
      _mm512_mask_storeu_ps(to, mask, value);
    }
  }
}

/// Prefetch distance of weights, in bytes.
constexpr int64_t kAhead = 4096;

/// M0 pixels of the first stretch and M1 of the second x 16 V channels.
template <int M0, int M1, int V, Result kResult>
__attribute__((noinline)) void tile(const GemmJob& job, const Place& place) {
  constexpr int M = M0 + M1;
  constexpr bool kToCodes = kResult == Result::kCodes || kResult == Result::kCodesResidual;
  __m512i sum[M][V];
  const bool full = place.columns >= 16 * V;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    __m512i start = _mm512_setzero_si512();
    if constexpr (kResult != Result::kRows) {
      start = _mm512_maskz_loadu_epi32(lanes(place.columns, v), job.start + place.column + 16 * v);
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) sum[i][v] = start;
  }
  if constexpr (kResult == Result::kCodesResidual) {
    // These lines are rarely in cache; the loop below hides the time that loading them takes.
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      _mm_prefetch((i < M0 ? place.residual[0] + i * job.residual_pixel_pitch
                           : place.residual[1] + (i - M0) * job.residual_pixel_pitch) +
                       place.column,
                   _MM_HINT_T0);
    }
  }

  const int64_t pitch = job.a_pixel_pitch;
  const int64_t b_step = job.width * 4;
  const int8_t* b = job.b + place.column * 4;
  constexpr int kFirst = (M0 + 2) / 3, kBases = kFirst + (M1 + 2) / 3;
  for (int64_t r = 0; r < job.runs; ++r) {
    const int64_t run = job.run_offset[r];
    const uint8_t* base[kBases];
#pragma GCC unroll 8
    for (int i = 0; i < kBases; ++i) {
      base[i] =
          (i < kFirst ? place.a[0] + 3 * i * pitch : place.a[1] + 3 * (i - kFirst) * pitch) + run;
    }
    for (int64_t k = job.run_bytes; k > 0; k -= 4) {
      __m512i w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        w[v] = _mm512_loadu_si512(b + 64 * v);
        _mm_prefetch(b + 64 * v + kAhead, _MM_HINT_T0);
      }
      multiply_rows<0, M0, M, V>(sum, w, base, pitch);
#pragma GCC unroll 8
      for (int i = 0; i < kBases; ++i) base[i] += 4;
      b += b_step;
    }
  }

  if constexpr (!kToCodes) {
    finish_floats<M0, M1, V, kResult>(job, place, sum);
  } else if (full) {
    finish_codes<M0, M1, V, kResult, true>(job, place, sum);
  } else {
    finish_codes<M0, M1, V, kResult, false>(job, place, sum);
  }
}

using Tile = void (*)(const GemmJob&, const Place&);

constexpr int kMost = 14;     // pixels of a tile
constexpr int kMostEach = 7;  // pixels of each of two stretches
constexpr int kFewPixels =
    6;  // grids up to here use tiles of 64 channels: weights are read in one stream
constexpr int64_t kL1Weights =
    16384;  // panels up to here stay in L1 while pixels pass: columns innermost

/// Tiles of one width: single[m], and pair[m] for m + m pixels.
template <int V, Result kResult>
struct Tiles {
  static constexpr Tile single[kMost + 1] = {nullptr,
                                             tile<1, 0, V, kResult>,
                                             tile<2, 0, V, kResult>,
                                             tile<3, 0, V, kResult>,
                                             tile<4, 0, V, kResult>,
                                             tile<5, 0, V, kResult>,
                                             tile<6, 0, V, kResult>,
                                             tile<7, 0, V, kResult>,
                                             tile<8, 0, V, kResult>,
                                             tile<9, 0, V, kResult>,
                                             tile<10, 0, V, kResult>,
                                             tile<11, 0, V, kResult>,
                                             tile<12, 0, V, kResult>,
                                             tile<13, 0, V, kResult>,
                                             tile<14, 0, V, kResult>};
  static constexpr Tile pair[kMostEach + 1] = {nullptr,
                                               tile<1, 1, V, kResult>,
                                               tile<2, 2, V, kResult>,
                                               tile<3, 3, V, kResult>,
                                               tile<4, 4, V, kResult>,
                                               tile<5, 5, V, kResult>,
                                               tile<6, 6, V, kResult>,
                                               tile<7, 7, V, kResult>};
};

/// Columns [first, last) of the pixels at `place`.
template <Result kResult>
inline void sweep_columns(const GemmJob& job, Place& place, int64_t first, int64_t last, Tile wide,
                          Tile narrow) {
  for (int64_t column = first; column < last;) {
    place.column = column;
    place.columns = job.n - column;
    if (job.width - column >= 32) {
      wide(job, place);
      column += 32;
    } else {
      narrow(job, place);
      column += 16;
    }
  }
}

/// Sets the pointers of stretch `i` of a place to output pixel (y, x).
template <Result kResult>
inline void stand(const GemmJob& job, int i, int64_t y, int64_t x, Place* place) {
  place->a[i] = job.a + y * job.a_row_pitch + x * job.a_pixel_pitch;
  if constexpr (kResult == Result::kFloats || kResult == Result::kRows) {
    place->out_f32[i] = job.out_f32 + y * job.f32_row_pitch + x * job.f32_pixel_pitch;
  } else {
    place->out[i] = job.out + y * job.out_row_pitch + x * job.out_pixel_pitch;
  }
  if constexpr (kResult == Result::kCodesResidual) {
    place->residual[i] = job.residual + y * job.residual_row_pitch + x * job.residual_pixel_pitch;
  }
  if (i == 0) place->x = x;
}

/// All pixels of the grid for columns [first, last).
template <Result kResult>
void sweep(const GemmJob& job, int64_t first, int64_t last) {
  using Wide = Tiles<2, kResult>;
  using Narrow = Tiles<1, kResult>;
  Place place{};
  int64_t y = 0;
  if (job.w <= kMostEach) {
    for (; y + 2 <= job.h; y += 2) {
      stand<kResult>(job, 0, y, 0, &place);
      stand<kResult>(job, 1, y + 1, 0, &place);
      sweep_columns<kResult>(job, place, first, last, Wide::pair[job.w], Narrow::pair[job.w]);
    }
  }
  const int64_t pieces = (job.w + kMost - 1) / kMost;
  const int64_t least = job.w / pieces, longer = job.w % pieces;
  for (; y < job.h; ++y) {
    int64_t x = 0;
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t m = least + (i < longer ? 1 : 0);
      stand<kResult>(job, 0, y, x, &place);
      sweep_columns<kResult>(job, place, first, last, Wide::single[m], Narrow::single[m]);
      x += m;
    }
  }
}

/// Few pixels and a full panel: every weight is read once, in the order of memory.
template <Result kResult>
void stream(const GemmJob& job) {
  static constexpr Tile tiles[kFewPixels + 1] = {nullptr,
                                                 tile<1, 0, 4, kResult>,
                                                 tile<2, 0, 4, kResult>,
                                                 tile<3, 0, 4, kResult>,
                                                 tile<4, 0, 4, kResult>,
                                                 tile<5, 0, 4, kResult>,
                                                 tile<6, 0, 4, kResult>};
  Place place{};
  place.columns = job.n;
  for (int64_t y = 0; y < job.h; ++y) {
    stand<kResult>(job, 0, y, 0, &place);
    tiles[job.w](job, place);
  }
}

template <Result kResult>
void multiply(const GemmJob& job) {
  if (job.w == 0) return;
  if (job.h * job.w <= kFewPixels && job.width == 64) {
    stream<kResult>(job);
  } else if (job.runs * job.run_bytes * job.width <= kL1Weights) {
    sweep<kResult>(job, 0, job.n);
  } else {
    for (int64_t column = 0; column < job.n; column += 32) {
      sweep<kResult>(job, column, column + 32 < job.n ? column + 32 : job.n);
    }
  }
}

void gemm_u8s8_u8(const GemmJob& job) {
  if (job.residual != nullptr) {
    multiply<Result::kCodesResidual>(job);
  } else {
    multiply<Result::kCodes>(job);
  }
}

void gemm_u8s8_f32(const GemmJob& job) { multiply<Result::kFloats>(job); }

void gemm_u8s8_rows(const GemmJob& job) { multiply<Result::kRows>(job); }

}  // namespace

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kVnni;
  table.split_panel = nullptr;
  table.gemm_u8s8_u8 = gemm_u8s8_u8;
  table.gemm_u8s8_f32 = gemm_u8s8_f32;
  table.gemm_u8s8_rows = gemm_u8s8_rows;
}

}  // namespace octavo::avx512_vnni

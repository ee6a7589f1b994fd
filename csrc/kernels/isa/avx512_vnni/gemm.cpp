// Dense products by vpdpbusd on 512-bit registers: tiles of up to 14 pixels x 32 channels (28 accumulators, 2 weight
// vectors, 1 activation), epilogue in registers. Filled into the row by table.cpp; called by conv.cpp. Panels: kVnni.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx512_vnni {
namespace {

enum class Result { kCodes, kCodesResidual, kFloats, kRows };

/// sum += a . b over the four bytes of every dword. Inline assembly, because GCC 12 spills accumulators around the
/// intrinsic once the loop has more than one induction variable (54-106 stack moves, half the speed).
inline __attribute__((always_inline)) void dot(__m512i& sum, __m512i a_u8, __m512i b_s8) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a_u8), "v"(b_s8));
}

/// Where a tile stands: up to two stretches of pixels, and its columns.
struct Place {
  const uint8_t* a[2];
  int64_t y[2], x[2];
  int64_t column;
  int64_t columns;  // that exist
};

inline __m512i broadcast4(const uint8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

template <int V>
inline __mmask16 lanes(int64_t columns) {
  const int64_t left = columns - 16 * V;
  return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

template <Result kResult>
inline __attribute__((always_inline)) void store(const GemmJob& job, __m512 v, int64_t y, int64_t x,
                                                 int64_t n, __mmask16 mask, __m512 lo, __m512 hi) {
  if constexpr (kResult == Result::kFloats) {
    v = _mm512_min_ps(_mm512_max_ps(v, lo), hi);
    _mm512_mask_storeu_ps(job.out_f32 + y * job.f32_row_pitch + x * job.f32_pixel_pitch + n, mask, v);
  } else {
    if constexpr (kResult == Result::kCodesResidual) {
      const uint8_t* r = job.residual + y * job.residual_row_pitch + x * job.residual_pixel_pitch + n;
      const __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, r));
      v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), _mm512_set1_ps(job.residual_scale), v);
    }
    v = _mm512_min_ps(_mm512_max_ps(v, lo), hi);
    const __m128i codes = _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(v));
    uint8_t* out = job.out + y * job.out_row_pitch + x * job.out_pixel_pitch + n;
    if (mask == 0xffff) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), codes);
    } else {
      _mm_mask_storeu_epi8(out, mask, codes);
    }
  }
}

/// M0 pixels of the first stretch and M1 of the second x 16 V channels.
template <int M0, int M1, int V, Result kResult>
__attribute__((noinline)) void tile(const GemmJob& job, const Place& place) {
  constexpr int M = M0 + M1;
  __m512i sum[M][V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    __m512i start = _mm512_setzero_si512();
    if constexpr (kResult != Result::kRows) {
      const __mmask16 mask = v == 0 ? lanes<0>(place.columns) : v == 1 ? lanes<1>(place.columns) : v == 2 ? lanes<2>(place.columns) : lanes<3>(place.columns);
      start = _mm512_maskz_loadu_epi32(mask, job.start + place.column + 16 * v);
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) sum[i][v] = start;
  }

  const int64_t pitch = job.a_pixel_pitch;
  const int64_t b_step = job.width * 4;
  const int8_t* b = job.b + place.column * 4;
  for (int64_t r = 0; r < job.runs; ++r) {
    const uint8_t* a0 = place.a[0] + job.run_offset[r];
    const uint8_t* a1 = M1 > 0 ? place.a[1] + job.run_offset[r] : nullptr;
    for (int64_t k = job.run_bytes; k > 0; k -= 4) {
      __m512i w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) w[v] = _mm512_loadu_si512(b + 64 * v);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const __m512i a = broadcast4(i < M0 ? a0 + i * pitch : a1 + (i - M0) * pitch);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) dot(sum[i][v], a, w[v]);
      }
      a0 += 4;
      if constexpr (M1 > 0) a1 += 4;
      b += b_step;
    }
  }

  const __m512 lo = _mm512_set1_ps(job.lo), hi = _mm512_set1_ps(job.hi);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const int64_t n = place.column + 16 * v;
    const __mmask16 mask = v == 0 ? lanes<0>(place.columns) : v == 1 ? lanes<1>(place.columns) : v == 2 ? lanes<2>(place.columns) : lanes<3>(place.columns);
    const __m512 scale = _mm512_maskz_loadu_ps(mask, job.scale + n);
    const __m512 offset = _mm512_maskz_loadu_ps(mask, job.offset + n);
    __m512i colsum = _mm512_setzero_si512();
    if constexpr (kResult == Result::kRows) colsum = _mm512_maskz_loadu_epi32(mask, job.colsum + n);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const int64_t y = i < M0 ? place.y[0] : place.y[1];
      const int64_t x = i < M0 ? place.x[0] + i : place.x[1] + i - M0;
      if constexpr (kResult == Result::kRows) {
        const __m512i zero = _mm512_set1_epi32(job.row_zero[x]);
        const __m512i exact = _mm512_sub_epi32(sum[i][v], _mm512_mullo_epi32(zero, colsum));
        const __m512 row = _mm512_mul_ps(_mm512_set1_ps(job.row_scale[x]), scale);
        const __m512 y_f32 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), row, offset);
        _mm512_mask_storeu_ps(job.out_f32 + x * job.f32_pixel_pitch + n, mask, y_f32);
      } else {
        const __m512 y_f32 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][v]), scale, offset);
        store<kResult>(job, y_f32, y, x, n, mask, lo, hi);
      }
    }
  }
}

using Tile = void (*)(const GemmJob&, const Place&);

constexpr int kMost = 14;       // pixels of a tile
constexpr int kMostEach = 7;    // pixels of each of two stretches
constexpr int kFewPixels = 6;   // up to here a tile is 64 channels wide

/// Tiles of one width: single[m], and pair[m] for m + m pixels.
template <int V, Result kResult>
struct Tiles {
  static constexpr Tile single[kMost + 1] = {
      nullptr,
      tile<1, 0, V, kResult>, tile<2, 0, V, kResult>, tile<3, 0, V, kResult>, tile<4, 0, V, kResult>,
      tile<5, 0, V, kResult>, tile<6, 0, V, kResult>, tile<7, 0, V, kResult>, tile<8, 0, V, kResult>,
      tile<9, 0, V, kResult>, tile<10, 0, V, kResult>, tile<11, 0, V, kResult>,
      tile<12, 0, V, kResult>, tile<13, 0, V, kResult>, tile<14, 0, V, kResult>};
  static constexpr Tile pair[kMostEach + 1] = {
      nullptr,
      tile<1, 1, V, kResult>, tile<2, 2, V, kResult>, tile<3, 3, V, kResult>, tile<4, 4, V, kResult>,
      tile<5, 5, V, kResult>, tile<6, 6, V, kResult>, tile<7, 7, V, kResult>};
};

/// All pixels of the grid for 16 V columns.
template <int V, Result kResult>
void sweep(const GemmJob& job, Place place) {
  using T = Tiles<V, kResult>;
  const auto at = [&](int64_t y, int64_t x) {
    return job.a + y * job.a_row_pitch + x * job.a_pixel_pitch;
  };
  int64_t y = 0;
  if (job.w <= kMostEach) {
    for (; y + 2 <= job.h; y += 2) {
      place.a[0] = at(y, 0);
      place.a[1] = at(y + 1, 0);
      place.x[0] = place.x[1] = 0;
      place.y[0] = y;
      place.y[1] = y + 1;
      T::pair[job.w](job, place);
    }
  }
  const int64_t pieces = (job.w + kMost - 1) / kMost;
  const int64_t least = job.w / pieces, longer = job.w % pieces;
  for (; y < job.h; ++y) {
    int64_t x = 0;
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t m = least + (i < longer ? 1 : 0);
      place.a[0] = at(y, x);
      place.x[0] = x;
      place.y[0] = y;
      T::single[m](job, place);
      x += m;
    }
  }
}

template <Result kResult>
void sweep_columns(const GemmJob& job) {
  if (job.w == 0) return;
  Place place{};
  for (int64_t column = 0; column < job.n;) {
    place.column = column;
    place.columns = job.n - column;
    if (job.width - column >= 32) {
      sweep<2, kResult>(job, place);
      column += 32;
    } else {
      sweep<1, kResult>(job, place);
      column += 16;
    }
  }
}

void gemm_u8s8_u8(const GemmJob& job) {
  if (job.residual != nullptr) {
    sweep_columns<Result::kCodesResidual>(job);
  } else {
    sweep_columns<Result::kCodes>(job);
  }
}

void gemm_u8s8_f32(const GemmJob& job) { sweep_columns<Result::kFloats>(job); }

void gemm_u8s8_rows(const GemmJob& job) { sweep_columns<Result::kRows>(job); }

}  // namespace

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kVnni;
  table.gemm_u8s8_u8 = gemm_u8s8_u8;
  table.gemm_u8s8_f32 = gemm_u8s8_f32;
  table.gemm_u8s8_rows = gemm_u8s8_rows;
}

}  // namespace octavo::avx512_vnni

// Jobs of one or two pixels: AVX-512 VNNI over the panels of the tiles. By tiles, one row costs as
// much as sixteen, and configuring them takes another 50 to 100 ns. Included by gemm.cpp.
#pragma once

#include "finish.h"

namespace octavo::OCTAVO_AMX {
namespace {

/// sum += four products of each dword. Assembly: with the intrinsic GCC 12 spills accumulators in
/// nested loops.
OCTAVO_INLINE void dot(__m512i& sum, __m512i a_u8, const int8_t* b_s8) {
  __asm__("vpdpbusd %2, %1, %0"
          : "+v"(sum)
          : "v"(a_u8), "m"(*reinterpret_cast<const __m512i*>(b_s8)));
}

template <Kind kKind>
OCTAVO_INLINE void store_pixel(const GemmJob& job, __m512i sum, int64_t x, int64_t column,
                               uint8_t* out, const uint8_t* residual) {
  const __mmask16 mask = existing(job.n - column);
  __m512 v = Columns<kKind>(job, column).value(job, sum, x);
  if constexpr (kKind == Kind::kU8) {
    if (residual != nullptr) {
      const __m128i r = _mm_loadu_si128(reinterpret_cast<const __m128i*>(residual + column));
      v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(r)),
                          _mm512_set1_ps(job.residual_scale), v);
    }
    v = clamp(v, _mm512_set1_ps(job.lo), _mm512_set1_ps(job.hi));
    _mm512_mask_cvtusepi32_storeu_epi8(out + column, mask, _mm512_cvtps_epi32(v));
  } else {
    _mm512_mask_storeu_ps(reinterpret_cast<float*>(out) + column, mask, v);
  }
}

/// R pixels times NT tiles of columns from `column` on; 4 * NT independent sums in all.
template <Kind kKind, int R, int NT>
__attribute__((noinline)) void multiply_pixels(const GemmJob& job, const uint8_t* const (&a)[2],
                                               int64_t column, uint8_t* const (&out)[2],
                                               const uint8_t* const (&residual)[2]) {
  constexpr int kPhases = 4 / R;
  const int8_t* b = job.b + column * job.depth;
  __m512i sum[R][kPhases][NT];
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int phase = 0; phase < kPhases; ++phase) {
#pragma GCC unroll 4
      for (int j = 0; j < NT; ++j) {
        sum[r][phase][j] = _mm512_setzero_si512();
      }
    }
  }
  for (int64_t run = 0; run < job.runs; ++run) {
    const int64_t begin = job.run_offset[run], end = begin + job.run_bytes;
    for (int64_t at = begin; at < end; at += 64, b += 1024) {
      for (int q = 0; q < 16; q += kPhases) {
#pragma GCC unroll 4
        for (int phase = 0; phase < kPhases; ++phase) {
          __m512i codes[R];
#pragma GCC unroll 2
          for (int r = 0; r < R; ++r) {
            int32_t quad;
            __builtin_memcpy(&quad, a[r] + at + 4 * (q + phase), 4);
            codes[r] = _mm512_set1_epi32(quad);
          }
#pragma GCC unroll 4
          for (int j = 0; j < NT; ++j) {
            const int8_t* row = b + j * 16 * job.depth + (q + phase) * 64;
            // Several columns of tiles are read as four streams, which hardware prefetchers follow;
            // with prefetch instructions weights from L2 took 10 % longer.
            if (NT == 1) __builtin_prefetch(row + 4096, 0, 3);
#pragma GCC unroll 2
            for (int r = 0; r < R; ++r) dot(sum[r][phase][j], codes[r], row);
          }
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < NT; ++j) {
      __m512i total = sum[r][0][j];
#pragma GCC unroll 4
      for (int phase = 1; phase < kPhases; ++phase) {
        total = _mm512_add_epi32(total, sum[r][phase][j]);
      }
      const int64_t c = column + 16 * j;
      if (c < job.n) store_pixel<kKind>(job, total, r, c, out[r], residual[r]);
    }
  }
}

template <Kind kKind, int R>
void multiply_few(const GemmJob& job) {
  // The second pixel is the next of the row or of the column.
  const int64_t x = job.w == 2, y = job.h == 2;
  const uint8_t* const a[2] = {job.a, job.a + x * job.a_pixel_pitch + y * job.a_row_pitch};
  uint8_t* out[2];
  const uint8_t* residual[2] = {nullptr, nullptr};
  if constexpr (kKind == Kind::kU8) {
    out[0] = job.out;
    out[1] = job.out + x * job.out_pixel_pitch + y * job.out_row_pitch;
    if (job.residual != nullptr) {
      residual[0] = job.residual;
      residual[1] = job.residual + x * job.residual_pixel_pitch + y * job.residual_row_pitch;
    }
  } else {
    out[0] = reinterpret_cast<uint8_t*>(job.out_f32);
    out[1] =
        reinterpret_cast<uint8_t*>(job.out_f32 + x * job.f32_pixel_pitch + y * job.f32_row_pitch);
  }
  int64_t column = 0;
  if (job.runs * job.run_bytes < 64 * kDeep) {
    for (; column + 64 <= job.width; column += 64) {
      multiply_pixels<kKind, R, 4>(job, a, column, out, residual);
    }
  }
  for (; column < job.width; column += 16) {
    multiply_pixels<kKind, R, 1>(job, a, column, out, residual);
  }
}

}  // namespace
}  // namespace octavo::OCTAVO_AMX

// Dense tiles on 256-bit registers, shared by avx2 and avx_vnni: each includes this file in its own
// unit, compiled with its own flags, and supplies the dot product (everything here is in an unnamed
// namespace, so no code crosses). A tile is Dot::kPixels pixels x 16 channels; panels: kVnni.
//
// Dot supplies: B load_b(const int8_t*) for 8 columns x 4 bytes, A broadcast(const uint8_t*) for 4
// activations, add(sum, A, B), and place_weights(job, place), which says where the weights of a
// group of 16 columns lie. With Dot::kRest some of them follow in lists, one for 8 columns each.
#pragma once

#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo {
namespace {

enum class Result { kCodes, kCodesResidual, kFloats, kRows };

/// Weights of 8 columns that are multiplied after all others: 32 bytes and the place of their four
/// activations each.
struct Rest {
  int64_t count;
  const int8_t* b;
  const int64_t* offset;
};

/// Up to two stretches of pixels and one group of 16 columns with its parameters, padded.
struct Place {
  const uint8_t* a[2];
  int64_t y[2], x[2];
  int64_t column, columns;
  const int8_t* b;
  int64_t b_step;  // bytes from four codes to the next four
  Rest rest[2];
  alignas(32) int32_t start[16], colsum[16];
  alignas(32) float scale[16], offset[16];
};

/// A dot product whose weights lie in the panel itself.
template <class Dot>
struct InPanel : Dot {
  static constexpr bool kRest = false;
  static void place_weights(const GemmJob& job, Place& place) {
    place.b = job.b + place.column * 4;
    place.b_step = job.width * 4;
  }
};

inline __m128i to_codes(__m256 v0, __m256 v1) {
  // In-lane pack, then the two middle quadwords change places; values lie in [0, 255].
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packs_epi32(_mm256_cvtps_epi32(v0), _mm256_cvtps_epi32(v1)), 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

inline __m256 add_residual(__m256 v, __m128i codes, float scale) {
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes)), _mm256_set1_ps(scale), v);
}

/// Epilogue of one pixel, 16 channels.
template <Result kResult>
inline __attribute__((always_inline)) void finish(const GemmJob& job, const Place& place,
                                                  __m256i s0, __m256i s1, int64_t y, int64_t x) {
  __m256 scale0 = _mm256_load_ps(place.scale), scale1 = _mm256_load_ps(place.scale + 8);
  if constexpr (kResult == Result::kRows) {
    const __m256i zero = _mm256_set1_epi32(job.row_zero[x]);
    const auto* colsum = reinterpret_cast<const __m256i*>(place.colsum);
    s0 = _mm256_sub_epi32(s0, _mm256_mullo_epi32(zero, _mm256_load_si256(colsum)));
    s1 = _mm256_sub_epi32(s1, _mm256_mullo_epi32(zero, _mm256_load_si256(colsum + 1)));
    const __m256 row = _mm256_set1_ps(job.row_scale[x]);
    scale0 = _mm256_mul_ps(row, scale0);
    scale1 = _mm256_mul_ps(row, scale1);
  }
  __m256 v0 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s0), scale0, _mm256_load_ps(place.offset));
  __m256 v1 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s1), scale1, _mm256_load_ps(place.offset + 8));
  const int64_t n = place.column;
  if constexpr (kResult == Result::kCodesResidual) {
    const uint8_t* r = job.residual + y * job.residual_row_pitch + x * job.residual_pixel_pitch + n;
    // May read past the channels: activation buffers have kSlack.
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(r));
    v0 = add_residual(v0, codes, job.residual_scale);
    v1 = add_residual(v1, _mm_srli_si128(codes, 8), job.residual_scale);
  }
  if constexpr (kResult != Result::kRows) {
    const __m256 lo = _mm256_set1_ps(job.lo), hi = _mm256_set1_ps(job.hi);
    v0 = _mm256_min_ps(_mm256_max_ps(v0, lo), hi);
    v1 = _mm256_min_ps(_mm256_max_ps(v1, lo), hi);
  }
  if constexpr (kResult == Result::kFloats || kResult == Result::kRows) {
    float* out = job.out_f32 + y * job.f32_row_pitch + x * job.f32_pixel_pitch + n;
    if (place.columns >= 16) {
      _mm256_storeu_ps(out, v0);
      _mm256_storeu_ps(out + 8, v1);
    } else {
      alignas(32) float part[16];
      _mm256_store_ps(part, v0);
      _mm256_store_ps(part + 8, v1);
      __builtin_memcpy(out, part, static_cast<size_t>(place.columns) * sizeof(float));
    }
  } else {
    const __m128i codes = to_codes(v0, v1);
    uint8_t* out = job.out + y * job.out_row_pitch + x * job.out_pixel_pitch + n;
    if (place.columns >= 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), codes);
    } else {
      alignas(16) uint8_t part[16];
      _mm_store_si128(reinterpret_cast<__m128i*>(part), codes);
      __builtin_memcpy(out, part, static_cast<size_t>(place.columns));
    }
  }
}

template <class Dot, int M0, int M1, int kHalf>
inline __attribute__((always_inline)) void add_rest(__m256i (&sum)[M0 + M1][2], const Place& place,
                                                    int64_t pitch) {
  const Rest& rest = place.rest[kHalf];
  for (int64_t j = 0; j < rest.count; ++j) {
    const auto w = Dot::load_b(rest.b + j * 32);
    const uint8_t* a0 = place.a[0] + rest.offset[j];
    const uint8_t* a1 = M1 > 0 ? place.a[1] + rest.offset[j] : nullptr;
#pragma GCC unroll 8
    for (int i = 0; i < M0 + M1; ++i) {
      const auto a = Dot::broadcast(i < M0 ? a0 + i * pitch : a1 + (i - M0) * pitch);
      Dot::add(sum[i][kHalf], a, w);
    }
  }
}

/// M0 pixels of the first stretch and M1 of the second x 16 channels.
template <class Dot, int M0, int M1, Result kResult>
__attribute__((noinline)) void tile(const GemmJob& job, const Place& place) {
  constexpr int M = M0 + M1;
  __m256i sum[M][2];
  const auto* start = reinterpret_cast<const __m256i*>(place.start);
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
    sum[i][0] = _mm256_load_si256(start);
    sum[i][1] = _mm256_load_si256(start + 1);
  }
  const int64_t pitch = job.a_pixel_pitch, b_step = place.b_step;
  const int8_t* b = place.b;
  for (int64_t r = 0; r < job.runs; ++r) {
    const uint8_t* a0 = place.a[0] + job.run_offset[r];
    const uint8_t* a1 = M1 > 0 ? place.a[1] + job.run_offset[r] : nullptr;
    for (int64_t k = job.run_bytes; k > 0; k -= 4) {
      const auto w0 = Dot::load_b(b), w1 = Dot::load_b(b + 32);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
        const auto a = Dot::broadcast(i < M0 ? a0 + i * pitch : a1 + (i - M0) * pitch);
        Dot::add(sum[i][0], a, w0);
        Dot::add(sum[i][1], a, w1);
      }
      a0 += 4;
      if constexpr (M1 > 0) a1 += 4;
      b += b_step;
    }
  }
  if constexpr (Dot::kRest) {
    add_rest<Dot, M0, M1, 0>(sum, place, pitch);
    add_rest<Dot, M0, M1, 1>(sum, place, pitch);
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
    finish<kResult>(job, place, sum[i][0], sum[i][1], i < M0 ? place.y[0] : place.y[1],
                    i < M0 ? place.x[0] + i : place.x[1] + i - M0);
  }
}

template <class Dot, Result kResult>
inline void call(int64_t m0, int64_t m1, const GemmJob& job, const Place& place) {
  if constexpr (kResult != Result::kRows) {  // rows are one stretch
    if constexpr (Dot::kPixels >= 6) {
      if (m1 == 3) return tile<Dot, 3, 3, kResult>(job, place);
    }
    if (m1 == 2) return tile<Dot, 2, 2, kResult>(job, place);
    if (m1 == 1) return tile<Dot, 1, 1, kResult>(job, place);
  }
  if constexpr (Dot::kPixels >= 6) {
    if (m0 == 6) return tile<Dot, 6, 0, kResult>(job, place);
  }
  if constexpr (Dot::kPixels >= 5) {
    if (m0 == 5) return tile<Dot, 5, 0, kResult>(job, place);
  }
  if (m0 == 4) return tile<Dot, 4, 0, kResult>(job, place);
  if (m0 == 3) return tile<Dot, 3, 0, kResult>(job, place);
  if (m0 == 2) return tile<Dot, 2, 0, kResult>(job, place);
  return tile<Dot, 1, 0, kResult>(job, place);
}

/// All pixels of the grid for 16 columns.
template <class Dot, Result kResult>
void sweep(const GemmJob& job, Place& place) {
  constexpr int64_t kMost = Dot::kPixels;
  const auto at = [&](int64_t y, int64_t x) {
    return job.a + y * job.a_row_pitch + x * job.a_pixel_pitch;
  };
  int64_t y = 0;
  if (kResult != Result::kRows && job.w <= kMost / 2) {
    for (; y + 2 <= job.h; y += 2) {
      place.a[0] = at(y, 0);
      place.a[1] = at(y + 1, 0);
      place.x[0] = place.x[1] = 0;
      place.y[0] = y;
      place.y[1] = y + 1;
      call<Dot, kResult>(job.w, job.w, job, place);
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
      call<Dot, kResult>(m, 0, job, place);
      x += m;
    }
  }
}

/// Sixteen columns from `column` and their parameters.
template <Result kResult>
inline void place_columns(const GemmJob& job, int64_t column, Place& place) {
  place.column = column;
  place.columns = job.n - column < 16 ? job.n - column : 16;
  for (int64_t c = 0; c < 16; ++c) {
    const bool exists = c < place.columns;
    if constexpr (kResult == Result::kRows) {
      place.colsum[c] = exists ? job.colsum[column + c] : 0;
    } else {
      place.start[c] = exists ? job.start[column + c] : 0;
    }
    place.scale[c] = exists ? job.scale[column + c] : 0.0f;
    place.offset[c] = exists ? job.offset[column + c] : 0.0f;
  }
}

/// One pixel x all 64 columns of a panel: weights are read once, in the order of memory, and
/// prefetched.
template <class Dot, Result kResult>
__attribute__((noinline)) void stream(const GemmJob& job) {
  constexpr int kAhead = 4096;  // bytes
  Place place[4] = {};
  __m256i sum[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (16 * i < job.n) place_columns<kResult>(job, 16 * i, place[i]);
    sum[2 * i] = _mm256_load_si256(reinterpret_cast<const __m256i*>(place[i].start));
    sum[2 * i + 1] = _mm256_load_si256(reinterpret_cast<const __m256i*>(place[i].start + 8));
  }
  const int8_t* b = job.b;
  for (int64_t r = 0; r < job.runs; ++r) {
    const uint8_t* a = job.a + job.run_offset[r];
    for (int64_t k = job.run_bytes; k > 0; k -= 4, a += 4, b += 256) {
      const auto u = Dot::broadcast(a);
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) {
        if (v % 2 == 0) _mm_prefetch(b + 32 * v + kAhead, _MM_HINT_T0);
        Dot::add(sum[v], u, Dot::load_b(b + 32 * v));
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (16 * i < job.n) finish<kResult>(job, place[i], sum[2 * i], sum[2 * i + 1], 0, 0);
  }
}

template <class Dot, Result kResult>
void sweep_columns(const GemmJob& job) {
  if (job.w == 0) return;
  if constexpr (!Dot::kRest) {
    if (job.h * job.w == 1 && job.width == 64) return stream<Dot, kResult>(job);
  }
  Place place{};
  for (int64_t column = 0; column < job.n; column += 16) {
    place_columns<kResult>(job, column, place);
    Dot::place_weights(job, place);
    sweep<Dot, kResult>(job, place);
  }
}

template <class Dot>
void gemm_u8s8_u8(const GemmJob& job) {
  if (job.residual != nullptr) {
    sweep_columns<Dot, Result::kCodesResidual>(job);
  } else {
    sweep_columns<Dot, Result::kCodes>(job);
  }
}

template <class Dot>
void gemm_u8s8_f32(const GemmJob& job) {
  sweep_columns<Dot, Result::kFloats>(job);
}

template <class Dot>
void gemm_u8s8_rows(const GemmJob& job) {
  sweep_columns<Dot, Result::kRows>(job);
}

}  // namespace
}  // namespace octavo

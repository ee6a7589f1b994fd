// Depthwise tiles on 256-bit registers, shared by avx2 and avx_vnni as ymm_gemm.h is: 32 channels
// at a time, four kernel rows interleaved into scratch, then one dot product a kernel column.
// Weight order: panel.h, depthwise_offset (the lower half of each 64-byte vector holds channels
// 0..31 of the chunk, the upper half 32..63).
//
// Taps supplies: kColumnBytes (interleaved bytes of one input column, 32 channels), kWeightBytes
// (prepared weights of one kernel column), interleave(four rows, out), prepare(weights, out),
// add(sum[4], column, weights).
#pragma once

#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo {
namespace {

enum class Result { kCodes, kCodesResidual, kFloats };

/// Parameters of 32 channels in interleaved order: register j, lane l: channels 16 l + 4 j ...
struct Parameters {
  __m256i start[4];
  __m256 scale[4], offset[4];
  int64_t channels;  // that exist, 1..32
};

template <class T>
inline __m256i load_interleaved(const T* p, int64_t channels, int j) {
  alignas(16) T lanes[8] = {};
  for (int l = 0; l < 2; ++l) {
    for (int i = 0; i < 4; ++i) {
      const int64_t c = 16 * l + 4 * j + i;
      if (c < channels) lanes[4 * l + i] = p[c];
    }
  }
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
}

inline __m256i load_row(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

/// Interleaves kernel rows 4 g .. 4 g + 3 of `columns` input columns. A row that the kernel lacks
/// repeats the last one: its weights are zero.
template <class Taps>
void interleave(const DepthwiseJob& job, const uint8_t* a, int64_t g, int64_t columns,
                uint8_t* out) {
  const uint8_t* row[4];
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t k = 4 * g + i < job.kernel_h ? 4 * g + i : job.kernel_h - 1;
    row[i] = a + k * job.dilation_h * job.a_row_pitch;
  }
  for (int64_t x = 0; x < columns; ++x, out += Taps::kColumnBytes) {
    const int64_t at = x * job.a_pixel_pitch;
    Taps::interleave(load_row(row[0] + at), load_row(row[1] + at), load_row(row[2] + at),
                     load_row(row[3] + at), out);
  }
}

/// Epilogue of one pixel: 32 channels in interleaved order, from channel `first` of the job.
template <Result kResult>
inline __attribute__((always_inline)) void finish(const DepthwiseJob& job, const Parameters& p,
                                                  const __m256i (&sum)[4], int64_t first, int64_t y,
                                                  int64_t x) {
  __m256 v[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i]), p.scale[i], p.offset[i]);
  }
  if constexpr (kResult == Result::kCodesResidual) {
    const __m256i codes =
        load_row(job.residual + y * job.residual_row_pitch + x * job.residual_pixel_pitch + first);
    const __m256i zero = _mm256_setzero_si256();
    const __m256i low = _mm256_unpacklo_epi8(codes, zero), high = _mm256_unpackhi_epi8(codes, zero);
    const __m256 scale = _mm256_set1_ps(job.residual_scale);
    v[0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_unpacklo_epi16(low, zero)), scale, v[0]);
    v[1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_unpackhi_epi16(low, zero)), scale, v[1]);
    v[2] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_unpacklo_epi16(high, zero)), scale, v[2]);
    v[3] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_unpackhi_epi16(high, zero)), scale, v[3]);
  }
  const __m256 lo = _mm256_set1_ps(job.lo), hi = _mm256_set1_ps(job.hi);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) v[i] = _mm256_min_ps(_mm256_max_ps(v[i], lo), hi);
  if constexpr (kResult == Result::kFloats) {
    alignas(32) float ordered[32];
    for (int j = 0; j < 4; ++j) {
      _mm_store_ps(ordered + 4 * j, _mm256_castps256_ps128(v[j]));
      _mm_store_ps(ordered + 16 + 4 * j, _mm256_extractf128_ps(v[j], 1));
    }
    float* out = job.out_f32 + y * job.f32_row_pitch + x * job.f32_pixel_pitch + first;
    __builtin_memcpy(out, ordered, static_cast<size_t>(p.channels) * sizeof(float));
  } else {
    // In-lane packs undo the interleaving; values lie in [0, 255], so nothing saturates.
    const __m256i codes =
        _mm256_packus_epi16(_mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1])),
                            _mm256_packs_epi32(_mm256_cvtps_epi32(v[2]), _mm256_cvtps_epi32(v[3])));
    uint8_t* out = job.out + y * job.out_row_pitch + x * job.out_pixel_pitch + first;
    if (p.channels == 32) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), codes);
    } else {
      alignas(32) uint8_t part[32];
      _mm256_store_si256(reinterpret_cast<__m256i*>(part), codes);
      __builtin_memcpy(out, part, static_cast<size_t>(p.channels));
    }
  }
}

template <class Taps, Result kResult>
void sweep(const DepthwiseJob& job, int64_t first) {
  Parameters p;
  p.channels = job.channels - first < 32 ? job.channels - first : 32;
  for (int j = 0; j < 4; ++j) {
    p.start[j] = load_interleaved(job.start + first, p.channels, j);
    p.scale[j] = _mm256_castsi256_ps(load_interleaved(job.scale + first, p.channels, j));
    p.offset[j] = _mm256_castsi256_ps(load_interleaved(job.offset + first, p.channels, j));
  }
  const int64_t groups = (job.kernel_h + 3) / 4, reach = (job.kernel_w - 1) * job.dilation_w + 1;
  const int64_t room = depthwise_columns(job.kernel_h, job.kernel_w, job.dilation_w);
  uint8_t* weights = job.scratch + room * 256;
  for (int64_t t = 0; t < groups * job.kernel_w; ++t) {
    Taps::prepare(job.weights + t * 256 + first, weights + t * Taps::kWeightBytes);
  }
  const int64_t most = (room / groups - reach) / job.stride_w + 1;  // output pixels a stretch
  const int64_t stretches = (job.w + most - 1) / most;
  const int64_t step = job.stride_w * Taps::kColumnBytes, tap = job.dilation_w * Taps::kColumnBytes;
  for (int64_t y = 0; y < job.h; ++y) {
    const uint8_t* image_row = job.a + y * job.stride_h * job.a_row_pitch + first;
    for (int64_t s = 0; s < stretches; ++s) {
      const int64_t x0 = job.w * s / stretches, x1 = job.w * (s + 1) / stretches;
      const int64_t columns = (x1 - x0 - 1) * job.stride_w + reach;
      for (int64_t g = 0; g < groups; ++g) {
        interleave<Taps>(job, image_row + x0 * job.stride_w * job.a_pixel_pitch, g, columns,
                         job.scratch + g * columns * Taps::kColumnBytes);
      }
      const uint8_t* at = job.scratch;
      for (int64_t x = x0; x < x1; ++x, at += step) {
        __m256i sum[4] = {p.start[0], p.start[1], p.start[2], p.start[3]};
        const uint8_t* w = weights;
        for (int64_t g = 0; g < groups; ++g) {
          const uint8_t* column = at + g * columns * Taps::kColumnBytes;
          for (int64_t j = 0; j < job.kernel_w; ++j, column += tap, w += Taps::kWeightBytes) {
            Taps::add(sum, column, w);
          }
        }
        finish<kResult>(job, p, sum, first, y, x);
      }
    }
  }
}

template <class Taps>
void depthwise_u8s8_u8(const DepthwiseJob& job) {
  for (int64_t first = 0; first < job.channels; first += 32) {
    if (job.residual != nullptr) {
      sweep<Taps, Result::kCodesResidual>(job, first);
    } else {
      sweep<Taps, Result::kCodes>(job, first);
    }
  }
}

template <class Taps>
void depthwise_u8s8_f32(const DepthwiseJob& job) {
  for (int64_t first = 0; first < job.channels; first += 32)
    sweep<Taps, Result::kFloats>(job, first);
}

}  // namespace
}  // namespace octavo

// Depthwise convolutions by vpdpbusd: four kernel rows are interleaved byte by byte into dwords
// (four taps of one channel), a stretch of an image row at a time, then every kernel column is one
// dot product per 16 channels. Filled into the row by table.cpp; called by conv.cpp. Weight order:
// panel.h, depthwise_offset.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx512_vnni {
namespace {

enum class Result { kCodes, kCodesResidual, kFloats };

constexpr int64_t kColumnBytes = 256;  // 64 channels x 4 rows

inline __attribute__((always_inline)) void dot(__m512i& sum, __m512i a_u8, __m512i b_s8) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a_u8), "v"(b_s8));
}

/// Four registers in channel order to the order of interleaved channels (register j, lane l:
/// channels 16 l + 4 j ..), and back: a transposition of 128-bit lanes.
inline __attribute__((always_inline)) void transpose_lanes(__m512i (&v)[4]) {
  const __m512i t0 = _mm512_shuffle_i32x4(v[0], v[1], 0x44);
  const __m512i t1 = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
  const __m512i t2 = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
  const __m512i t3 = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_i32x4(t0, t2, 0x88);
  v[1] = _mm512_shuffle_i32x4(t0, t2, 0xdd);
  v[2] = _mm512_shuffle_i32x4(t1, t3, 0x88);
  v[3] = _mm512_shuffle_i32x4(t1, t3, 0xdd);
}

inline __mmask16 lanes(int64_t channels, int v) {
  const int64_t left = channels - 16 * v;
  return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

/// Channel parameters in interleaved order.
struct Parameters {
  __m512i start[4];
  __m512 scale[4], offset[4];
};

inline __attribute__((always_inline)) void load(const void* from, int64_t channels,
                                                __m512i (&v)[4]) {
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_maskz_loadu_epi32(lanes(channels, i), static_cast<const int32_t*>(from) + 16 * i);
  }
  transpose_lanes(v);
}

/// Interleaves kernel rows 4 g .. 4 g + 3 of `columns` input columns. A row that the kernel lacks
/// repeats the last one: its weights are zero.
void interleave(const DepthwiseJob& job, const uint8_t* a, int64_t g, int64_t columns,
                uint8_t* out) {
  const uint8_t* row[4];
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t k = 4 * g + i < job.kernel_h ? 4 * g + i : job.kernel_h - 1;
    row[i] = a + k * job.dilation_h * job.a_row_pitch;
  }
  for (int64_t x = 0; x < columns; ++x, out += kColumnBytes) {
    const int64_t at = x * job.a_pixel_pitch;
    const __m512i r0 = _mm512_loadu_si512(row[0] + at), r1 = _mm512_loadu_si512(row[1] + at);
    const __m512i r2 = _mm512_loadu_si512(row[2] + at), r3 = _mm512_loadu_si512(row[3] + at);
    const __m512i low01 = _mm512_unpacklo_epi8(r0, r1), high01 = _mm512_unpackhi_epi8(r0, r1);
    const __m512i low23 = _mm512_unpacklo_epi8(r2, r3), high23 = _mm512_unpackhi_epi8(r2, r3);
    _mm512_store_si512(out, _mm512_unpacklo_epi16(low01, low23));
    _mm512_store_si512(out + 64, _mm512_unpackhi_epi16(low01, low23));
    _mm512_store_si512(out + 128, _mm512_unpacklo_epi16(high01, high23));
    _mm512_store_si512(out + 192, _mm512_unpackhi_epi16(high01, high23));
  }
}

/// Epilogue of one pixel: 64 channels in interleaved order.
template <Result kResult>
inline __attribute__((always_inline)) void finish(const DepthwiseJob& job, const Parameters& p,
                                                  const __m512i (&sum)[4], int64_t y, int64_t x) {
  const __m512 lo = _mm512_set1_ps(job.lo), hi = _mm512_set1_ps(job.hi);
  __m512 v[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i]), p.scale[i], p.offset[i]);
  }
  const __mmask64 bytes = job.channels >= 64 ? ~__mmask64{0} : (__mmask64{1} << job.channels) - 1;
  if constexpr (kResult == Result::kCodesResidual) {
    const uint8_t* r = job.residual + y * job.residual_row_pitch + x * job.residual_pixel_pitch;
    const __m512i codes = _mm512_maskz_loadu_epi8(bytes, r), zero = _mm512_setzero_si512();
    const __m512i low = _mm512_unpacklo_epi8(codes, zero), high = _mm512_unpackhi_epi8(codes, zero);
    const __m512 scale = _mm512_set1_ps(job.residual_scale);
    v[0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_unpacklo_epi16(low, zero)), scale, v[0]);
    v[1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_unpackhi_epi16(low, zero)), scale, v[1]);
    v[2] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_unpacklo_epi16(high, zero)), scale, v[2]);
    v[3] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_unpackhi_epi16(high, zero)), scale, v[3]);
  }
  __m512i q[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_min_ps(_mm512_max_ps(v[i], lo), hi);
    if constexpr (kResult == Result::kFloats) {
      q[i] = _mm512_castps_si512(v[i]);
    } else {
      q[i] = _mm512_cvtps_epi32(v[i]);
    }
  }
  if constexpr (kResult == Result::kFloats) {
    transpose_lanes(q);
    float* out = job.out_f32 + y * job.f32_row_pitch + x * job.f32_pixel_pitch;
    for (int i = 0; i < 4; ++i) {
      _mm512_mask_storeu_epi32(out + 16 * i, lanes(job.channels, i), q[i]);
    }
  } else {
    // In-lane packs undo the interleaving; values lie in [0, 255], so nothing saturates.
    const __m512i codes =
        _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
    uint8_t* out = job.out + y * job.out_row_pitch + x * job.out_pixel_pitch;
    if (job.channels >= 64) {
      _mm512_storeu_si512(out, codes);
    } else {
      _mm512_mask_storeu_epi8(out, bytes, codes);
    }
  }
}

/// Output pixels [x0, x1) of row y from interleaved columns. kTaps: row groups times kernel columns
/// if few enough for registers, else 0.
template <int kTaps, Result kResult>
void row(const DepthwiseJob& job, const Parameters& p, const uint8_t* taps, int64_t columns,
         int64_t y, int64_t x0, int64_t x1) {
  const int64_t step = job.stride_w * kColumnBytes, tap = job.dilation_w * kColumnBytes;
  if constexpr (kTaps > 0) {
    __m512i w[kTaps][4];
#pragma GCC unroll 16
    for (int j = 0; j < kTaps; ++j) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) w[j][v] = _mm512_loadu_si512(job.weights + (j * 4 + v) * 64);
    }
    for (int64_t x = x0; x < x1; ++x, taps += step) {
      __m512i sum[4] = {p.start[0], p.start[1], p.start[2], p.start[3]};
#pragma GCC unroll 16
      for (int j = 0; j < kTaps; ++j) {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
          dot(sum[v], _mm512_load_si512(taps + j * tap + 64 * v), w[j][v]);
      }
      finish<kResult>(job, p, sum, y, x);
    }
  } else {
    const int64_t groups = (job.kernel_h + 3) / 4;
    for (int64_t x = x0; x < x1; ++x, taps += step) {
      __m512i sum[4] = {p.start[0], p.start[1], p.start[2], p.start[3]};
      const int8_t* w = job.weights;
      for (int64_t g = 0; g < groups; ++g) {
        const uint8_t* a = taps + g * columns * kColumnBytes;
        for (int64_t j = 0; j < job.kernel_w; ++j, a += tap, w += 256) {
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) {
            dot(sum[v], _mm512_load_si512(a + 64 * v), _mm512_loadu_si512(w + 64 * v));
          }
        }
      }
      finish<kResult>(job, p, sum, y, x);
    }
  }
}

template <Result kResult>
void sweep(const DepthwiseJob& job) {
  Parameters p;
  __m512i bits[4];
  load(job.start, job.channels, p.start);
  load(job.scale, job.channels, bits);
  for (int i = 0; i < 4; ++i) p.scale[i] = _mm512_castsi512_ps(bits[i]);
  load(job.offset, job.channels, bits);
  for (int i = 0; i < 4; ++i) p.offset[i] = _mm512_castsi512_ps(bits[i]);

  const int64_t groups = (job.kernel_h + 3) / 4, reach = (job.kernel_w - 1) * job.dilation_w + 1;
  const int64_t room = depthwise_columns(job.kernel_h, job.kernel_w, job.dilation_w) / groups;
  const int64_t most = (room - reach) / job.stride_w + 1;  // output pixels a stretch
  const int64_t stretches = (job.w + most - 1) / most;
  for (int64_t y = 0; y < job.h; ++y) {
    const uint8_t* image_row = job.a + y * job.stride_h * job.a_row_pitch;
    for (int64_t s = 0; s < stretches; ++s) {
      const int64_t x0 = job.w * s / stretches, x1 = job.w * (s + 1) / stretches;
      const int64_t columns = (x1 - x0 - 1) * job.stride_w + reach;
      const uint8_t* a = image_row + x0 * job.stride_w * job.a_pixel_pitch;
      for (int64_t g = 0; g < groups; ++g) {
        interleave(job, a, g, columns, job.scratch + g * columns * kColumnBytes);
      }
      if (groups == 1 && job.kernel_w == 3) {
        row<3, kResult>(job, p, job.scratch, columns, y, x0, x1);
      } else {
        row<0, kResult>(job, p, job.scratch, columns, y, x0, x1);
      }
    }
  }
}

void depthwise_u8s8_u8(const DepthwiseJob& job) {
  if (job.residual != nullptr) {
    sweep<Result::kCodesResidual>(job);
  } else {
    sweep<Result::kCodes>(job);
  }
}

void depthwise_u8s8_f32(const DepthwiseJob& job) { sweep<Result::kFloats>(job); }

}  // namespace

void fill_depthwise(GemmTable& table) {
  table.depthwise_u8s8_u8 = depthwise_u8s8_u8;
  table.depthwise_u8s8_f32 = depthwise_u8s8_f32;
}

}  // namespace octavo::avx512_vnni

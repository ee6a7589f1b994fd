// Depthwise convolutions by vpdpbusd: four kernel rows are interleaved byte by byte into dwords
// (four taps of one channel), a stretch of an image row at a time, then every kernel column is one
// dot product per 16 channels. Filled into the row by table.cpp; called by product_depthwise.cpp.
// Weight order: panel.h, depthwise_offset.
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

/// Kernels of up to 4 x 3 taps to codes: each input column is interleaved once, in registers, and
/// added to the three (stride 1) or two (stride 2) outputs that it touches. kTwoRows: at most 32
/// channels; the upper half of every register works on the next output row.
template <int kStride, bool kTwoRows>
class Rolling {
 public:
  explicit Rolling(const DepthwiseJob& job) : job_(job) {
    __m512i v[4];
    load_parameters(job.start, start_);
    load_parameters(job.scale, v);
    for (int i = 0; i < 4; ++i) scale_[i] = _mm512_castsi512_ps(v[i]);
    load_parameters(job.offset, v);
    for (int i = 0; i < 4; ++i) offset_[i] = _mm512_castsi512_ps(v[i]);
    lo_ = _mm512_set1_epi8(static_cast<char>(_mm_cvtss_si32(_mm_set_ss(job.lo))));
  }

  void run() {
    for (int64_t y = 0; y < job_.h; y += kTwoRows ? 2 : 1) {
      // An odd last row is computed twice.
      row(y, kTwoRows && y + 1 < job_.h ? 1 : 0);
    }
  }

 private:
  void load_parameters(const void* from, __m512i (&v)[4]) {
    load(from, job_.channels, v);
    if constexpr (kTwoRows) {
      for (int i = 0; i < 4; ++i) v[i] = _mm512_shuffle_i64x2(v[i], v[i], 0x44);
    }
  }

  void row(int64_t y, int64_t second) {
    __m512i w[3][4];
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m512i taps = _mm512_loadu_si512(job_.weights + (j * 4 + v) * 64);
        w[j][v] = kTwoRows ? _mm512_shuffle_i64x2(taps, taps, 0x44) : taps;
      }
    }
    const uint8_t* a[4];
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t k = i < job_.kernel_h ? i : job_.kernel_h - 1;
      a[i] = job_.a + (y * job_.stride_h + k * job_.dilation_h) * job_.a_row_pitch;
    }
    const int64_t next_row = second * job_.stride_h * job_.a_row_pitch;
    const int64_t pitch = job_.a_pixel_pitch;
    uint8_t* out = job_.out + y * job_.out_row_pitch;
    const int64_t out_next = second * job_.out_row_pitch, out_pitch = job_.out_pixel_pitch;
    const __m512 hi = _mm512_set1_ps(job_.hi);
    const bool raised =
        _mm_cvtss_si32(_mm_set_ss(job_.lo)) > 0;  // lo is above what the packs clamp to
    const int64_t channels = job_.channels;

    // One interleaved column, and on to the next.
    __m512i t[4];
    const auto column = [&]() __attribute__((always_inline)) {
      __m512i r[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        if constexpr (kTwoRows) {
          r[i] = _mm512_inserti64x4(
              _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a[i]))),
              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a[i] + next_row)), 1);
        } else {
          r[i] = _mm512_loadu_si512(a[i]);
        }
        a[i] += pitch;
      }
      const __m512i low01 = _mm512_unpacklo_epi8(r[0], r[1]);
      const __m512i high01 = _mm512_unpackhi_epi8(r[0], r[1]);
      const __m512i low23 = _mm512_unpacklo_epi8(r[2], r[3]);
      const __m512i high23 = _mm512_unpackhi_epi8(r[2], r[3]);
      t[0] = _mm512_unpacklo_epi16(low01, low23);
      t[1] = _mm512_unpackhi_epi16(low01, low23);
      t[2] = _mm512_unpacklo_epi16(high01, high23);
      t[3] = _mm512_unpackhi_epi16(high01, high23);
    };
    const auto begin = [&](__m512i(&sum)[4]) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        sum[v] = start_[v];
        dot(sum[v], t[v], w[0][v]);
      }
    };
    const auto add = [&](__m512i(&sum)[4], const __m512i(&taps)[4]) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) dot(sum[v], t[v], taps[v]);
    };
    const auto end = [&](__m512i(&sum)[4]) __attribute__((always_inline)) {
      __m512i q[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m512 f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[v]), scale_[v], offset_[v]);
        // Too small and NaN become INT_MIN and then 0, as in gemm.cpp.
        q[v] = _mm512_cvtps_epi32(_mm512_min_ps(hi, f));
      }
      __m512i codes =
          _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
      if (raised) codes = _mm512_max_epu8(codes, lo_);
      if constexpr (kTwoRows) {
        const __m256i first = _mm512_castsi512_si256(codes),
                      last = _mm512_extracti64x4_epi64(codes, 1);
        if (channels == 32) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), first);
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + out_next), last);
        } else {
          const auto mask = static_cast<__mmask32>((uint64_t{1} << channels) - 1);
          _mm256_mask_storeu_epi8(out, mask, first);
          _mm256_mask_storeu_epi8(out + out_next, mask, last);
        }
      } else if (channels >= 64) {
        _mm512_storeu_si512(out, codes);
      } else {
        _mm512_mask_storeu_epi8(out, (__mmask64{1} << channels) - 1, codes);
      }
      out += out_pitch;
    };

    __m512i sum0[4], sum1[4];
    int64_t x = job_.w;
    if constexpr (kStride == 1) {
      __m512i sum2[4];
      column();
      begin(sum0);
      column();
      add(sum0, w[1]);
      begin(sum1);
      // The column's other two products come before the epilogue: the column is not needed after
      // them, and no register spills.
      for (;;) {
        column();
        add(sum0, w[2]);
        add(sum1, w[1]);
        begin(sum2);
        end(sum0);
        if (--x == 0) break;
        column();
        add(sum1, w[2]);
        add(sum2, w[1]);
        begin(sum0);
        end(sum1);
        if (--x == 0) break;
        column();
        add(sum2, w[2]);
        add(sum0, w[1]);
        begin(sum1);
        end(sum2);
        if (--x == 0) break;
      }
    } else {
      column();
      begin(sum0);
      for (;;) {
        column();
        add(sum0, w[1]);
        column();
        add(sum0, w[2]);
        end(sum0);
        begin(sum1);
        if (--x == 0) break;
        column();
        add(sum1, w[1]);
        column();
        add(sum1, w[2]);
        end(sum1);
        begin(sum0);
        if (--x == 0) break;
      }
    }
  }

  const DepthwiseJob& job_;
  __m512i start_[4];
  __m512 scale_[4], offset_[4];
  __m512i lo_;
};

template <int kStride>
void roll(const DepthwiseJob& job) {
  if (job.channels <= 32) {
    Rolling<kStride, true>(job).run();
  } else {
    Rolling<kStride, false>(job).run();
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
  if (job.w == 0) return;
  const bool three = job.kernel_w == 3 && job.kernel_h <= 4 && job.dilation_w == 1;
  if (job.residual != nullptr) {
    sweep<Result::kCodesResidual>(job);
  } else if (three && job.stride_w == 1) {
    roll<1>(job);
  } else if (three && job.stride_w == 2) {
    roll<2>(job);
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

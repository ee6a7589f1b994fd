// Dense products by sdot: tiles of 4 pixels x 16 columns. Filled into the row neon_dotprod by
// table.cpp; called by conv.cpp. sdot takes s8 on both sides, so activations are flipped to s8 by
// XOR 128 and every sum begins with 128 times its weights' column sum, which is exact.
#include <arm_neon.h>

#include "../../kernel_table.h"

namespace octavo::neon_dotprod {
namespace {

constexpr int64_t kPanelColumns = 64;  // at most
constexpr int kVectors = 4;            // of 4 columns: a tile's width

/// The job's parameters padded to a whole panel.
struct Work {
  const GemmJob* job;
  int32_t start[kPanelColumns];
  int32_t colsum[kPanelColumns];
  float scale[kPanelColumns];
  float offset[kPanelColumns];
};

/// start += 128 * column sum of every column of the panel, modulo 2^32.
void add_column_sums(const GemmJob& job, int32_t* start) {
  const int8x16_t ones = vdupq_n_s8(1);
  const int64_t quads = job.runs * (job.run_bytes / 4);
  for (int64_t column = 0; column < job.width; column += 16) {
    int32x4_t sum[kVectors] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    const int8_t* b = job.b + column * 4;
    for (int64_t q = 0; q < quads; ++q, b += job.width * 4) {
      for (int v = 0; v < kVectors; ++v) sum[v] = vdotq_s32(sum[v], vld1q_s8(b + 16 * v), ones);
    }
    for (int v = 0; v < kVectors; ++v) {
      int32_t* at = start + column + 4 * v;
      vst1q_s32(at, vaddq_s32(vld1q_s32(at), vshlq_n_s32(sum[v], 7)));
    }
  }
}

/// Compare and select, so that NaN gives lo and signed zeros come out as the specification's.
inline float32x4_t clamp(float32x4_t v, float32x4_t lo, float32x4_t hi) {
  v = vbslq_f32(vcgtq_f32(v, lo), v, lo);
  return vbslq_f32(vcltq_f32(v, hi), v, hi);
}

inline int8x16_t flip(uint8x16_t codes) {
  return vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(128)));
}

/// Sums of M pixels x 16 columns: `a` holds the pixels' addresses, b is the first quad of the first
/// column.
template <int M>
inline __attribute__((always_inline)) void sum_products(const GemmJob& job, const uint8_t* const* a,
                                                        const int8_t* b,
                                                        int32x4_t (&sum)[M][kVectors]) {
  const int64_t step = job.width * 4;
  for (int64_t r = 0; r < job.runs; ++r) {
    const int64_t end = job.run_offset[r] + job.run_bytes;
    int64_t at = job.run_offset[r];
    for (; at + 16 <= end; at += 16) {
      int8x16_t codes[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) codes[m] = flip(vld1q_u8(a[m] + at));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int8_t* w = b + 16 * v;
        const int8x16_t w0 = vld1q_s8(w), w1 = vld1q_s8(w + step);
        const int8x16_t w2 = vld1q_s8(w + 2 * step), w3 = vld1q_s8(w + 3 * step);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          sum[m][v] = vdotq_laneq_s32(sum[m][v], w0, codes[m], 0);
          sum[m][v] = vdotq_laneq_s32(sum[m][v], w1, codes[m], 1);
          sum[m][v] = vdotq_laneq_s32(sum[m][v], w2, codes[m], 2);
          sum[m][v] = vdotq_laneq_s32(sum[m][v], w3, codes[m], 3);
        }
      }
      b += 4 * step;
    }
    for (; at < end; at += 4, b += step) {
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        uint32_t quad;
        __builtin_memcpy(&quad, a[m] + at, 4);
        const int8x16_t codes = flip(vreinterpretq_u8_u32(vdupq_n_u32(quad)));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          sum[m][v] = vdotq_s32(sum[m][v], vld1q_s8(b + 16 * v), codes);
        }
      }
    }
  }
}

/// Copies the first `count` of 16 results.
template <class T>
inline void store_some(T* out, const T* results, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = results[i];
}

struct Codes {
  static void store(const Work& work, const int32x4_t (&sum)[kVectors], int64_t y, int64_t x,
                    int64_t column) {
    const GemmJob& job = *work.job;
    const float32x4_t lo = vdupq_n_f32(job.lo), hi = vdupq_n_f32(job.hi);
    float32x4_t v[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      const int64_t c = column + 4 * i;
      v[i] =
          vfmaq_f32(vld1q_f32(work.offset + c), vcvtq_f32_s32(sum[i]), vld1q_f32(work.scale + c));
    }
    if (job.residual != nullptr) {
      const uint8_t* residual =
          job.residual + y * job.residual_row_pitch + x * job.residual_pixel_pitch + column;
      const uint8x16_t r = vld1q_u8(residual);  // past the columns that exist: slack
      const uint16x8_t low = vmovl_u8(vget_low_u8(r)), high = vmovl_u8(vget_high_u8(r));
      const uint32x4_t wide[kVectors] = {
          vmovl_u16(vget_low_u16(low)), vmovl_u16(vget_high_u16(low)),
          vmovl_u16(vget_low_u16(high)), vmovl_u16(vget_high_u16(high))};
      const float32x4_t scale = vdupq_n_f32(job.residual_scale);
      for (int i = 0; i < kVectors; ++i) v[i] = vfmaq_f32(v[i], vcvtq_f32_u32(wide[i]), scale);
    }
    int32x4_t code[kVectors];
    for (int i = 0; i < kVectors; ++i) code[i] = vcvtnq_s32_f32(clamp(v[i], lo, hi));
    const int16x8_t low = vcombine_s16(vmovn_s32(code[0]), vmovn_s32(code[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(code[2]), vmovn_s32(code[3]));
    const uint8x16_t bytes = vcombine_u8(vqmovun_s16(low), vqmovun_s16(high));
    uint8_t* out = job.out + y * job.out_row_pitch + x * job.out_pixel_pitch + column;
    if (job.n - column >= 16) {
      vst1q_u8(out, bytes);
    } else {
      uint8_t some[16];
      vst1q_u8(some, bytes);
      store_some(out, some, job.n - column);
    }
  }
};

inline void store_floats(const GemmJob& job, const float32x4_t (&v)[kVectors], int64_t y, int64_t x,
                         int64_t column) {
  float* out = job.out_f32 + y * job.f32_row_pitch + x * job.f32_pixel_pitch + column;
  if (job.n - column >= 16) {
    for (int i = 0; i < kVectors; ++i) vst1q_f32(out + 4 * i, v[i]);
  } else {
    float some[16];
    for (int i = 0; i < kVectors; ++i) vst1q_f32(some + 4 * i, v[i]);
    store_some(out, some, job.n - column);
  }
}

struct Floats {
  static void store(const Work& work, const int32x4_t (&sum)[kVectors], int64_t y, int64_t x,
                    int64_t column) {
    const GemmJob& job = *work.job;
    const float32x4_t lo = vdupq_n_f32(job.lo), hi = vdupq_n_f32(job.hi);
    float32x4_t v[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      const int64_t c = column + 4 * i;
      v[i] =
          vfmaq_f32(vld1q_f32(work.offset + c), vcvtq_f32_s32(sum[i]), vld1q_f32(work.scale + c));
      v[i] = clamp(v[i], lo, hi);
    }
    store_floats(job, v, y, x, column);
  }
};

struct Rows {
  static void store(const Work& work, const int32x4_t (&sum)[kVectors], int64_t y, int64_t x,
                    int64_t column) {
    const GemmJob& job = *work.job;
    const int32x4_t zero = vdupq_n_s32(job.row_zero[x]);
    const float32x4_t row_scale = vdupq_n_f32(job.row_scale[x]);
    float32x4_t v[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      const int64_t c = column + 4 * i;
      const int32x4_t exact = vmlsq_s32(sum[i], zero, vld1q_s32(work.colsum + c));
      v[i] = vfmaq_f32(vld1q_f32(work.offset + c), vcvtq_f32_s32(exact),
                       vmulq_f32(row_scale, vld1q_f32(work.scale + c)));
    }
    store_floats(job, v, y, x, column);
  }
};

template <class Result, int M>
void multiply(const Work& work, int64_t y, int64_t x) {
  const GemmJob& job = *work.job;
  const uint8_t* a[M];
  for (int m = 0; m < M; ++m) a[m] = job.a + y * job.a_row_pitch + (x + m) * job.a_pixel_pitch;
  for (int64_t column = 0; column < job.n; column += 16) {
    int32x4_t sum[M][kVectors];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[m][v] = vld1q_s32(work.start + column + 4 * v);
    }
    sum_products<M>(job, a, job.b + column * 4, sum);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) Result::store(work, sum[m], y, x + m, column);
  }
}

template <class T>
inline void pad(T* to, const T* from, int64_t count) {
  for (int64_t c = 0; c < kPanelColumns; ++c) to[c] = from != nullptr && c < count ? from[c] : T{};
}

template <class Result>
void multiply_job(const GemmJob& job, const int32_t* start, const int32_t* colsum) {
  Work work;
  work.job = &job;
  pad(work.start, start, job.n);
  pad(work.colsum, colsum, job.n);
  pad(work.scale, job.scale, job.n);
  pad(work.offset, job.offset, job.n);
  add_column_sums(job, work.start);
  for (int64_t y = 0; y < job.h; ++y) {
    int64_t x = 0;
    for (; x + 4 <= job.w; x += 4) multiply<Result, 4>(work, y, x);
    for (; x + 2 <= job.w; x += 2) multiply<Result, 2>(work, y, x);
    for (; x < job.w; ++x) multiply<Result, 1>(work, y, x);
  }
}

void gemm_u8s8_u8(const GemmJob& job) { multiply_job<Codes>(job, job.start, nullptr); }
void gemm_u8s8_f32(const GemmJob& job) { multiply_job<Floats>(job, job.start, nullptr); }
void gemm_u8s8_rows(const GemmJob& job) { multiply_job<Rows>(job, nullptr, job.colsum); }

}  // namespace

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kNeon;
  table.gemm_u8s8_u8 = gemm_u8s8_u8;
  table.gemm_u8s8_f32 = gemm_u8s8_f32;
  table.gemm_u8s8_rows = gemm_u8s8_rows;
}

}  // namespace octavo::neon_dotprod

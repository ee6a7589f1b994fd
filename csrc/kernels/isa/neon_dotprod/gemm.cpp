// Dense products by sdot: tiles of 4 pixels x 16 columns. Filled into the row neon_dotprod by
// table.cpp; called by product_dense.cpp. sdot takes s8 on both sides, so activations are flipped
// to s8 by XOR 128 and every sum begins with 128 times its weights' column sum, which is exact.
#include "../../kernel_table.h"
#include "codes.h"

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

/// fmaf(sum, scale, offset) of 16 columns.
inline Floats scaled(const Work& work, const int32x4_t (&sum)[kVectors], int64_t column) {
  Floats f;
  for (int i = 0; i < kVectors; ++i) {
    const int64_t c = column + 4 * i;
    f.v[i] =
        vfmaq_f32(vld1q_f32(work.offset + c), vcvtq_f32_s32(sum[i]), vld1q_f32(work.scale + c));
  }
  return f;
}

inline float* float_place(const GemmJob& job, int64_t y, int64_t x, int64_t column) {
  return job.out_f32 + y * job.f32_row_pitch + x * job.f32_pixel_pitch + column;
}

struct Codes {
  static void store(const Work& work, const int32x4_t (&sum)[kVectors], int64_t y, int64_t x,
                    int64_t column) {
    const GemmJob& job = *work.job;
    const int64_t columns = job.n - column;
    Floats f = scaled(work, sum, column);
    if (job.residual != nullptr) {
      const uint8_t* at = job.residual + y * job.residual_row_pitch + x * job.residual_pixel_pitch;
      const Floats residual = widen(load_codes(at + column, columns));
      const float32x4_t by = vdupq_n_f32(job.residual_scale);
      for (int i = 0; i < kVectors; ++i) f.v[i] = vfmaq_f32(f.v[i], residual.v[i], by);
    }
    uint8_t* out = job.out + y * job.out_row_pitch + x * job.out_pixel_pitch + column;
    store_codes(out, narrow(f, vdupq_n_f32(job.lo), vdupq_n_f32(job.hi)), columns);
  }
};

struct Reals {
  static void store(const Work& work, const int32x4_t (&sum)[kVectors], int64_t y, int64_t x,
                    int64_t column) {
    const GemmJob& job = *work.job;
    Floats f = scaled(work, sum, column);
    for (float32x4_t& v : f.v) v = clamp(v, vdupq_n_f32(job.lo), vdupq_n_f32(job.hi));
    store_floats(float_place(job, y, x, column), f, job.n - column);
  }
};

struct Rows {
  static void store(const Work& work, const int32x4_t (&sum)[kVectors], int64_t y, int64_t x,
                    int64_t column) {
    const GemmJob& job = *work.job;
    const int32x4_t zero = vdupq_n_s32(job.row_zero[x]);
    const float32x4_t row_scale = vdupq_n_f32(job.row_scale[x]);
    Floats f;
    for (int i = 0; i < kVectors; ++i) {
      const int64_t c = column + 4 * i;
      const int32x4_t exact = vmlsq_s32(sum[i], zero, vld1q_s32(work.colsum + c));
      f.v[i] = vfmaq_f32(vld1q_f32(work.offset + c), vcvtq_f32_s32(exact),
                         vmulq_f32(row_scale, vld1q_f32(work.scale + c)));
    }
    store_floats(float_place(job, y, x, column), f, job.n - column);
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
void gemm_u8s8_f32(const GemmJob& job) { multiply_job<Reals>(job, job.start, nullptr); }
void gemm_u8s8_rows(const GemmJob& job) { multiply_job<Rows>(job, nullptr, job.colsum); }

}  // namespace

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kNeon;
  table.gemm_u8s8_u8 = gemm_u8s8_u8;
  table.gemm_u8s8_f32 = gemm_u8s8_f32;
  table.gemm_u8s8_rows = gemm_u8s8_rows;
}

}  // namespace octavo::neon_dotprod

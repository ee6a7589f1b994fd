// Dense products in plain loops: the specification that every other ISA equals bit for bit. Filled
// into the scalar row by table.cpp; called by product_dense.cpp.
#include "../../kernel_table.h"

namespace octavo::scalar {
namespace {

/// Exact sum of one output, added to `sum` modulo 2^32. u8 x s8 products reach 32,640, so the sum
/// holds in 32 bits for k <= 65,793; the driver sends longer sums elsewhere.
int32_t dot(const GemmJob& job, int64_t y, int64_t x, int64_t n, int32_t sum) {
  uint32_t total = static_cast<uint32_t>(sum);
  const uint8_t* pixel = job.a + y * job.a_row_pitch + x * job.a_pixel_pitch;
  const int8_t* b = job.b + n;
  for (int64_t r = 0; r < job.runs; ++r) {
    const uint8_t* a = pixel + job.run_offset[r];
    for (int64_t k = 0; k < job.run_bytes; ++k, b += job.width) {
      total += static_cast<uint32_t>(int32_t{a[k]} * int32_t{*b});
    }
  }
  return static_cast<int32_t>(total);
}

float clamp(float v, float lo, float hi) {
  v = v > lo ? v : lo;  // NaN gives lo
  return v < hi ? v : hi;
}

void gemm_u8s8_u8(const GemmJob& job) {
  for (int64_t y = 0; y < job.h; ++y) {
    for (int64_t x = 0; x < job.w; ++x) {
      for (int64_t n = 0; n < job.n; ++n) {
        const auto sum = static_cast<float>(dot(job, y, x, n, job.start[n]));
        float v = __builtin_fmaf(sum, job.scale[n], job.offset[n]);
        if (job.residual != nullptr) {
          const uint8_t r =
              job.residual[y * job.residual_row_pitch + x * job.residual_pixel_pitch + n];
          v = __builtin_fmaf(static_cast<float>(r), job.residual_scale, v);
        }
        v = __builtin_rintf(clamp(v, job.lo, job.hi));
        job.out[y * job.out_row_pitch + x * job.out_pixel_pitch + n] = static_cast<uint8_t>(v);
      }
    }
  }
}

void gemm_u8s8_f32(const GemmJob& job) {
  for (int64_t y = 0; y < job.h; ++y) {
    for (int64_t x = 0; x < job.w; ++x) {
      for (int64_t n = 0; n < job.n; ++n) {
        const auto sum = static_cast<float>(dot(job, y, x, n, job.start[n]));
        const float v = __builtin_fmaf(sum, job.scale[n], job.offset[n]);
        job.out_f32[y * job.f32_row_pitch + x * job.f32_pixel_pitch + n] = clamp(v, job.lo, job.hi);
      }
    }
  }
}

void gemm_u8s8_rows(const GemmJob& job) {
  for (int64_t x = 0; x < job.w; ++x) {
    for (int64_t n = 0; n < job.n; ++n) {
      const uint32_t start =
          0u - static_cast<uint32_t>(job.row_zero[x]) * static_cast<uint32_t>(job.colsum[n]);
      const auto sum = static_cast<float>(dot(job, 0, x, n, static_cast<int32_t>(start)));
      job.out_f32[x * job.f32_pixel_pitch + n] =
          __builtin_fmaf(sum, job.row_scale[x] * job.scale[n], job.offset[n]);
    }
  }
}

}  // namespace

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kScalar;
  table.chunk_bytes = 256 << 10;
  table.gemm_u8s8_u8 = gemm_u8s8_u8;
  table.gemm_u8s8_f32 = gemm_u8s8_f32;
  table.gemm_u8s8_rows = gemm_u8s8_rows;
}

}  // namespace octavo::scalar

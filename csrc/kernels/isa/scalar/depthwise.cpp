// Depthwise convolutions in plain loops: the specification. Panels are [chunk of 64
// channels][kernel_h][kernel_w][64]. Filled into the scalar row by table.cpp; called by
// product_depthwise.cpp.
#include "../../kernel_table.h"

namespace octavo::scalar {
namespace {

constexpr int64_t kChunk = 64;

float value(const DepthwiseJob& job, int64_t y, int64_t x, int64_t c) {
  uint32_t sum = static_cast<uint32_t>(job.start[c]);
  const int8_t* w = job.weights + c / kChunk * kChunk * job.kernel_h * job.kernel_w + c % kChunk;
  for (int64_t i = 0; i < job.kernel_h; ++i) {
    const uint8_t* row = job.a + (y * job.stride_h + i * job.dilation_h) * job.a_row_pitch +
                         x * job.stride_w * job.a_pixel_pitch + c;
    for (int64_t j = 0; j < job.kernel_w; ++j) {
      const uint8_t a = row[j * job.dilation_w * job.a_pixel_pitch];
      sum += static_cast<uint32_t>(int32_t{a} * int32_t{w[(i * job.kernel_w + j) * kChunk]});
    }
  }
  return __builtin_fmaf(static_cast<float>(static_cast<int32_t>(sum)), job.scale[c], job.offset[c]);
}

float clamp(float v, float lo, float hi) {
  v = v > lo ? v : lo;  // NaN gives lo
  return v < hi ? v : hi;
}

void depthwise_u8s8_u8(const DepthwiseJob& job) {
  for (int64_t y = 0; y < job.h; ++y) {
    for (int64_t x = 0; x < job.w; ++x) {
      for (int64_t c = 0; c < job.channels; ++c) {
        float v = value(job, y, x, c);
        if (job.residual != nullptr) {
          const uint8_t r =
              job.residual[y * job.residual_row_pitch + x * job.residual_pixel_pitch + c];
          v = __builtin_fmaf(static_cast<float>(r), job.residual_scale, v);
        }
        v = __builtin_rintf(clamp(v, job.lo, job.hi));
        job.out[y * job.out_row_pitch + x * job.out_pixel_pitch + c] = static_cast<uint8_t>(v);
      }
    }
  }
}

void depthwise_u8s8_f32(const DepthwiseJob& job) {
  for (int64_t y = 0; y < job.h; ++y) {
    for (int64_t x = 0; x < job.w; ++x) {
      for (int64_t c = 0; c < job.channels; ++c) {
        job.out_f32[y * job.f32_row_pitch + x * job.f32_pixel_pitch + c] =
            clamp(value(job, y, x, c), job.lo, job.hi);
      }
    }
  }
}

}  // namespace

void fill_depthwise(GemmTable& table) {
  table.depthwise_u8s8_u8 = depthwise_u8s8_u8;
  table.depthwise_u8s8_f32 = depthwise_u8s8_f32;
}

}  // namespace octavo::scalar

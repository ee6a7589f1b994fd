// Depthwise convolutions by widening multiply-adds: 16 channels of one pixel at a time, 8 x 8 bits
// to 16, then to 32. Filled into the row neon_dotprod by table.cpp; called by
// product_depthwise.cpp. Panels: kNeon, [tap][64 channels].
#include "../../kernel_table.h"
#include "codes.h"

namespace octavo::neon_dotprod {
namespace {

constexpr int64_t kChunk = 64;
constexpr int kVectors = 4;  // of 4 channels

struct Sums {
  int32x4_t v[kVectors];
};

/// Adds the window of output (y, x) for channels c .. c + 15. Activations beyond the last channel
/// are slack, weights there are zero. |u8 x s8| <= 32,640 fits 16 bits, so the widening
/// multiply-adds are exact.
inline void add_window(const DepthwiseJob& job, int64_t y, int64_t x, int64_t c, Sums& sums) {
  const int8_t* weights =
      job.weights + c / kChunk * kChunk * job.kernel_h * job.kernel_w + c % kChunk;
  const uint8_t* first =
      job.a + y * job.stride_h * job.a_row_pitch + x * job.stride_w * job.a_pixel_pitch + c;
  for (int64_t i = 0; i < job.kernel_h; ++i) {
    const uint8_t* a = first + i * job.dilation_h * job.a_row_pitch;
    for (int64_t j = 0; j < job.kernel_w; ++j) {
      const uint8x16_t codes = vld1q_u8(a);
      const int8x16_t w = vld1q_s8(weights);
      const int16x8_t a_low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(codes)));
      const int16x8_t a_high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(codes)));
      const int16x8_t w_low = vmovl_s8(vget_low_s8(w)), w_high = vmovl_s8(vget_high_s8(w));
      sums.v[0] = vmlal_s16(sums.v[0], vget_low_s16(a_low), vget_low_s16(w_low));
      sums.v[1] = vmlal_high_s16(sums.v[1], a_low, w_low);
      sums.v[2] = vmlal_s16(sums.v[2], vget_low_s16(a_high), vget_low_s16(w_high));
      sums.v[3] = vmlal_high_s16(sums.v[3], a_high, w_high);
      a += job.dilation_w * job.a_pixel_pitch;
      weights += kChunk;
    }
  }
}

/// Parameters of 16 channels, zeros where there are none.
struct Parameters {
  int32_t start[16];
  float scale[16], offset[16];

  Parameters(const DepthwiseJob& job, int64_t c) {
    for (int64_t i = 0; i < 16; ++i) {
      const bool exists = c + i < job.channels;
      start[i] = exists ? job.start[c + i] : 0;
      scale[i] = exists ? job.scale[c + i] : 0.0f;
      offset[i] = exists ? job.offset[c + i] : 0.0f;
    }
  }
};

template <bool kCodes>
void multiply_job(const DepthwiseJob& job) {
  const float32x4_t lo = vdupq_n_f32(job.lo), hi = vdupq_n_f32(job.hi);
  for (int64_t c = 0; c < job.channels; c += 16) {
    const Parameters parameters(job, c);
    const int64_t channels = job.channels - c;
    for (int64_t y = 0; y < job.h; ++y) {
      for (int64_t x = 0; x < job.w; ++x) {
        Sums sums;
        for (int i = 0; i < kVectors; ++i) sums.v[i] = vld1q_s32(parameters.start + 4 * i);
        add_window(job, y, x, c, sums);
        Floats f;
        for (int i = 0; i < kVectors; ++i) {
          f.v[i] = vfmaq_f32(vld1q_f32(parameters.offset + 4 * i), vcvtq_f32_s32(sums.v[i]),
                             vld1q_f32(parameters.scale + 4 * i));
        }
        if constexpr (kCodes) {
          if (job.residual != nullptr) {
            const uint8_t* at =
                job.residual + y * job.residual_row_pitch + x * job.residual_pixel_pitch + c;
            const Floats residual = widen(load_codes(at, channels));
            const float32x4_t by = vdupq_n_f32(job.residual_scale);
            for (int i = 0; i < kVectors; ++i) f.v[i] = vfmaq_f32(f.v[i], residual.v[i], by);
          }
          uint8_t* out = job.out + y * job.out_row_pitch + x * job.out_pixel_pitch + c;
          store_codes(out, narrow(f, lo, hi), channels);
        } else {
          for (float32x4_t& v : f.v) v = clamp(v, lo, hi);
          store_floats(job.out_f32 + y * job.f32_row_pitch + x * job.f32_pixel_pitch + c, f,
                       channels);
        }
      }
    }
  }
}

void depthwise_u8s8_u8(const DepthwiseJob& job) { multiply_job<true>(job); }
void depthwise_u8s8_f32(const DepthwiseJob& job) { multiply_job<false>(job); }

}  // namespace

void fill_depthwise(GemmTable& table) {
  table.depthwise_u8s8_u8 = depthwise_u8s8_u8;
  table.depthwise_u8s8_f32 = depthwise_u8s8_f32;
}

}  // namespace octavo::neon_dotprod

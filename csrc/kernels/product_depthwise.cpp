// Depthwise convolutions: chunks of channels and bands of rows for the active ISA's kernel
// (gemm_table.h). Called by conv.cpp.
#include "dispatch.h"
#include "kernel_table.h"
#include "product.h"
#include "scratch.h"

namespace octavo {
namespace {

enum ScratchUse { kTaps, kFloats, kScratchUses };

uint8_t* scratch(ScratchUse use, int64_t bytes) {
  thread_local Scratch memory[kScratchUses];
  return memory[use].get(bytes);
}

void depthwise_item(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
                    const Sink& sink, const Size& size, int64_t channel, int64_t first,
                    int64_t last) {
  const GemmTable& table = active_table().gemm;
  DepthwiseJob job{};
  job.a_row_pitch = in.row_pitch;
  job.a_pixel_pitch = in.pixel_pitch;
  job.w = size.w;
  job.channels = smaller(kDepthwiseChunk, size.c - channel);
  job.kernel_h = g.kernel_h;
  job.kernel_w = g.kernel_w;
  job.stride_h = g.stride_h;
  job.stride_w = g.stride_w;
  job.dilation_h = g.dilation_h;
  job.dilation_w = g.dilation_w;
  job.weights =
      panel.weights + depthwise_offset(panel.layout, g.kernel_h, g.kernel_w, channel, 0, 0);
  job.start = e.start + channel;
  job.scale = e.scale + channel;
  job.offset = e.offset + channel;
  job.lo = e.lo;
  job.hi = e.hi;
  job.residual_scale = e.residual_scale;
  job.scratch = scratch(kTaps, depthwise_scratch(g.kernel_h, g.kernel_w, g.dilation_w));
  for (int64_t row = first; row < last;) {
    const int64_t n = row / size.h, y = row % size.h;
    job.h = smaller(size.h - y, last - row);
    job.a = first_tap(in, g, n) + y * g.stride_h * in.row_pitch + channel;
    if (sink.f32 == nullptr) {
      const Image& out = *sink.u8;
      job.out = out.data + n * out.image_pitch + y * out.row_pitch + channel;
      job.out_row_pitch = out.row_pitch;
      job.out_pixel_pitch = out.pixel_pitch;
      if (sink.residual != nullptr) {
        const Image& r = *sink.residual;
        job.residual = r.data + n * r.image_pitch + y * r.row_pitch + channel;
        job.residual_row_pitch = r.row_pitch;
        job.residual_pixel_pitch = r.pixel_pitch;
      }
      table.depthwise_u8s8_u8(job);
    } else {
      const FloatImage& out = *sink.f32;
      float* to = out.data + n * out.stride_n + y * out.stride_h + channel * out.stride_c;
      if (out.stride_c == 1) {
        job.out_f32 = to;
        job.f32_row_pitch = out.stride_h;
        job.f32_pixel_pitch = out.stride_w;
        table.depthwise_u8s8_f32(job);
      } else {
        auto* floats = reinterpret_cast<float*>(
            scratch(kFloats, size.w * job.channels * static_cast<int64_t>(sizeof(float))));
        DepthwiseJob one = job;
        one.h = 1;
        one.out_f32 = floats;
        one.f32_row_pitch = size.w * job.channels;
        one.f32_pixel_pitch = job.channels;
        for (int64_t i = 0; i < job.h; ++i) {
          table.depthwise_u8s8_f32(one);
          for (int64_t c = 0; c < job.channels; ++c) {
            for (int64_t x = 0; x < size.w; ++x) {
              to[c * out.stride_c + x * out.stride_w] = floats[x * job.channels + c];
            }
          }
          to += out.stride_h;
          one.a += g.stride_h * in.row_pitch;
        }
      }
    }
    row += job.h;
  }
}

}  // namespace

void run_depthwise(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
                   const Sink& sink, const Size& size) {
  const int64_t columns = ceil_div(size.c, kDepthwiseChunk);
  const int64_t units = size.n * size.h;
  const int64_t macs = units * size.w * size.c * g.kernel_h * g.kernel_w;
  const int64_t bands =
      band_count(units, g.stride_h * in.row_pitch, columns, macs, kDepthwiseGrain);
  const int64_t items = bands * columns;
  parallel_for(0, items, grain_of(items, macs, kDepthwiseGrain), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t band = i / columns;
      depthwise_item(in, g, panel, e, sink, size, i % columns * kDepthwiseChunk,
                     units * band / bands, units * (band + 1) / bands);
    }
  });
}

}  // namespace octavo

// Depthwise convolutions: chunks of channels and bands of rows for the kernel of the
// panel's ISA (gemm_table.h). Called by conv.cpp.
#include "product.h"

namespace octavo {
namespace {

void depthwise_item(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
                    const Sink& sink, const Size& size, int64_t channel, int64_t first,
                    int64_t last) {
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
  thread_local Scratch memory;
  job.scratch = memory.get(depthwise_scratch(g.kernel_h, g.kernel_w, g.dilation_w));
  for (int64_t row = first; row < last;) {
    const int64_t n = row / size.h, y = row % size.h;
    job.h = smaller(size.h - y, last - row);
    job.a = first_tap(in, g, n) + y * g.stride_h * in.row_pitch + channel;
    if (sink.f32 != nullptr) {
      const FloatImage& out = *sink.f32;
      float* to = out.data + n * out.stride_n + y * out.stride_h + channel * out.stride_c;
      run_floats(job, panel.table.depthwise_u8s8_f32, out, to, job.channels,
                 g.stride_h * in.row_pitch);
    } else {
      aim(job, sink, channel, n, y, 0);
      panel.table.depthwise_u8s8_u8(job);
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

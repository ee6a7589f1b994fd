// Every integer convolution, with results as codes or floats: picks the driver by the panel and
// counts the multiply-adds. Called by ops/ and region/; memory orders of weights are in panel.h.
#include <atomic>
#include <limits>

#include "kernels.h"
#include "product.h"

namespace octavo {
namespace {

std::atomic<int64_t> macs_done{0};

/// Products of one output channel without padding.
int64_t products_per_output(const Panel& panel) {
  const PanelHeader& h = panel.header;
  return h.in_channels / h.groups * h.kernel_h * h.kernel_w;
}

void run(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
         const Sink& sink, const Size& size) {
  if (size.n * size.h * size.w * size.c == 0) return;
  const int64_t products = products_per_output(panel);
  add_integer_macs(size.n * size.h * size.w * size.c * products);
  if (products > kLongestSum) {
    run_long(in, g, panel, e, sink, size);
  } else if (panel.header.depthwise != 0) {
    run_depthwise(in, g, panel, e, sink, size);
  } else {
    run_dense(in, g, panel, e, sink, size);
  }
}

}  // namespace

int64_t conv_out_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad_total,
                      int64_t dilation) {
  const int64_t room = in + pad_total - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

void conv_u8(const Image& in, const ConvGeometry& g, const void* panel, const Epilogue& e,
             const Image* residual, const Image& out) {
  Sink sink;
  sink.u8 = &out;
  sink.residual = residual;
  run(in, g, Panel(panel), e, sink, {out.n, out.h, out.w, out.c});
}

void conv_f32(const Image& in, const ConvGeometry& g, const void* panel, const Epilogue& e,
              const FloatImage& out) {
  Sink sink;
  sink.f32 = &out;
  run(in, g, Panel(panel), e, sink, {out.n, out.h, out.w, out.c});
}

void conv_dynamic(const Image& in, const QuantParams* params, const ConvGeometry& g,
                  const void* panel, const FloatImage& out) {
  const Panel p(panel);
  const int64_t channels = out.c;
  thread_local Scratch memory;
  auto* start = reinterpret_cast<int32_t*>(memory.get(channels * 8));
  auto* scale = reinterpret_cast<float*>(start + channels);
  Epilogue e;
  e.start = start;
  e.scale = scale;
  e.offset = p.bias;
  e.lo = -std::numeric_limits<float>::infinity();
  e.hi = std::numeric_limits<float>::infinity();
  for (int64_t n = 0; n < out.n; ++n) {
    e.zero_point = params[n].zero_point;
    for (int64_t c = 0; c < channels; ++c) {
      start[c] = static_cast<int32_t>(0u - static_cast<uint32_t>(e.zero_point) *
                                               static_cast<uint32_t>(p.colsum[c]));
      scale[c] = params[n].scale * p.scale[c];
    }
    Image sample = in;
    sample.n = 1;
    sample.data += n * in.image_pitch;
    FloatImage result = out;
    result.n = 1;
    result.data += n * out.stride_n;
    Sink sink;
    sink.f32 = &result;
    run(sample, g, p, e, sink, {result.n, result.h, result.w, result.c});
  }
}

void add_integer_macs(int64_t macs) { macs_done.fetch_add(macs, std::memory_order_relaxed); }
int64_t integer_macs() { return macs_done.load(std::memory_order_relaxed); }
void reset_integer_macs() { macs_done.store(0, std::memory_order_relaxed); }

}  // namespace octavo

// Layers whose sums int32 cannot hold: exact in int64, one output at a time. Called by conv.cpp and
// linear_dynamic.cpp.
#include <cmath>

#include "product.h"

namespace octavo {
namespace {

/// Weight code of (channel o, input channel i of its block, tap t).
int8_t weight_at(const Panel& panel, int64_t o, int64_t i, int64_t t) {
  const PanelHeader& h = panel.header;
  const PanelGeometry& p = panel.geometry;
  if (h.depthwise != 0) {
    return panel.weights[depthwise_offset(panel.layout, h.kernel_h, h.kernel_w, o, t / h.kernel_w,
                                          t % h.kernel_w)];
  }
  const int64_t nr = kPanelUnits[h.layout].nr;
  const int64_t column = o % p.block_out, index = column / nr;
  return panel
      .weights[panel_start(panel.layout, p, o / p.block_out, index) +
               panel_offset(panel.layout, panel_width(panel.layout, p, index), p.runs * p.run_bytes,
                            place_in_column(h, p, t, i), column % nr)];
}

float clamp(float v, float lo, float hi) {
  v = v > lo ? v : lo;
  return v < hi ? v : hi;
}

}  // namespace

int64_t long_sum(const Image& in, const ConvGeometry& g, const Panel& panel, int64_t n, int64_t y,
                 int64_t x, int64_t o) {
  const PanelGeometry& p = panel.geometry;
  const bool depthwise = panel.header.depthwise != 0;
  const int64_t inputs = depthwise ? 1 : p.block_in;
  const int64_t first = depthwise ? o : p.block_out == 0 ? 0 : o / p.block_out * p.block_in;
  int64_t sum = 0;
  for (int64_t t = 0; t < g.kernel_h * g.kernel_w; ++t) {
    const uint8_t* a = first_tap(in, g, n) +
                       (y * g.stride_h + t / g.kernel_w * g.dilation_h) * in.row_pitch +
                       (x * g.stride_w + t % g.kernel_w * g.dilation_w) * in.pixel_pitch + first;
    for (int64_t i = 0; i < inputs; ++i) sum += int64_t{a[i]} * weight_at(panel, o, i, t);
  }
  return sum;
}

void run_long(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
              const Sink& sink, const Size& size) {
  parallel_for(0, size.n * size.h * size.w, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t x = i % size.w, y = i / size.w % size.h, n = i / size.w / size.h;
      for (int64_t o = 0; o < size.c; ++o) {
        // start may not fit int32 here; with the zero point it is formed exactly.
        const int64_t start =
            e.zero_point >= 0 ? -int64_t{e.zero_point} * panel.colsum[o] : int64_t{e.start[o]};
        const int64_t sum = start + long_sum(in, g, panel, n, y, x, o);
        float v = std::fmaf(static_cast<float>(sum), e.scale[o], e.offset[o]);
        if (sink.f32 != nullptr) {
          const FloatImage& out = *sink.f32;
          out.data[n * out.stride_n + y * out.stride_h + x * out.stride_w + o * out.stride_c] =
              clamp(v, e.lo, e.hi);
          continue;
        }
        if (sink.residual != nullptr) {
          const Image& r = *sink.residual;
          const uint8_t code = r.data[n * r.image_pitch + y * r.row_pitch + x * r.pixel_pitch + o];
          v = std::fmaf(static_cast<float>(code), e.residual_scale, v);
        }
        const Image& out = *sink.u8;
        out.data[n * out.image_pitch + y * out.row_pitch + x * out.pixel_pitch + o] =
            static_cast<uint8_t>(std::nearbyintf(clamp(v, e.lo, e.hi)));
      }
    }
  });
}

}  // namespace octavo

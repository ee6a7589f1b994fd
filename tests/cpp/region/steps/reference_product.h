// The product that references of convolutions and linear layers share.
#pragma once

#include <vector>

#include "region/reference.h"

namespace octavo {

/// Scales, biases and codes of a packed weight.
struct ReferenceWeight {
  const PanelHeader& header;
  const float *scale, *bias;
  std::vector<int8_t> codes;
};

inline ReferenceWeight reference_weight(const ReferenceStep& s) {
  const char* bytes = s.panel<char>();
  const auto& h = *s.panel<PanelHeader>();
  std::vector<int8_t> codes(
      static_cast<size_t>(h.out_channels * (h.in_channels / h.groups) * h.kernel_h * h.kernel_w));
  unpack_panel(bytes, codes.data());
  return {h, reinterpret_cast<const float*>(bytes + h.scale_offset),
          reinterpret_cast<const float*>(bytes + h.bias_offset), std::move(codes)};
}

/// Calls f(image, position in out, output channel, exact sum) for every result. params(image): of
/// x.
template <class P, class F>
void each_sum(const ReferenceStep& s, const ReferenceWeight& weight, P&& params, F&& f) {
  const ReferenceValue& in = s.x();
  const ReferenceValue& out = s.out();
  const PanelHeader& h = weight.header;
  const int64_t group_in = h.in_channels / h.groups, group_out = h.out_channels / h.groups;
  const ConvGeometry& g = s.step().geometry;
  for (int64_t b = 0; b < out.n; ++b)
    for (int64_t y = 0; y < out.h; ++y)
      for (int64_t x = 0; x < out.w; ++x)
        for (int64_t o = 0; o < out.c; ++o) {
          int64_t sum = 0;
          for (int64_t c = 0; c < group_in; ++c)
            for (int64_t u = 0; u < g.kernel_h; ++u)
              for (int64_t t = 0; t < g.kernel_w; ++t) {
                const int64_t row = y * g.stride_h - g.pad_top + u * g.dilation_h;
                const int64_t column = x * g.stride_w - g.pad_left + t * g.dilation_w;
                if (row < 0 || row >= in.h || column < 0 || column >= in.w) continue;
                const int64_t source = o / group_out * group_in + c;
                sum += (in.q[in.at(b, row, column, source)] - params(b).zero_point) *
                       int64_t{weight.codes[static_cast<size_t>(
                           ((o * group_in + c) * g.kernel_h + u) * g.kernel_w + t)]};
              }
          f(b, out.at(b, y, x, o), o, static_cast<float>(static_cast<int32_t>(sum)));
        }
}

/// conv and linear.
void product_to_codes(const ReferenceStep& s);
/// conv_f32 and linear_f32.
void product_to_floats(const ReferenceStep& s);

}  // namespace octavo

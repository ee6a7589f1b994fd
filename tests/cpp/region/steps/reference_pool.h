// The windows that references of pools share.
#pragma once

#include <algorithm>
#include <cmath>

#include "region/reference.h"

namespace octavo {

/// What lies in one window: positions inside the image, and inside the padded image.
struct PoolWindow {
  int64_t sum = 0, inside = 0, most = 0, padded = 0;
};

/// Calls f(position in out, window) for every window of kernel, stride, pad and dilation.
template <class F>
void each_window(const ReferenceStep& s, F&& f) {
  const Step& step = s.step();
  const ReferenceValue& in = s.x();
  const ReferenceValue& out = s.out();
  const ConvGeometry& g = step.geometry;
  for (int64_t b = 0; b < out.n; ++b)
    for (int64_t y = 0; y < out.h; ++y)
      for (int64_t x = 0; x < out.w; ++x)
        for (int64_t c = 0; c < out.c; ++c) {
          PoolWindow window;
          for (int64_t u = 0; u < g.kernel_h; ++u)
            for (int64_t t = 0; t < g.kernel_w; ++t) {
              const int64_t row = y * g.stride_h - g.pad_top + u * g.dilation_h;
              const int64_t column = x * g.stride_w - g.pad_left + t * g.dilation_w;
              if (row < in.h + step.pad_bottom && column < in.w + step.pad_right) ++window.padded;
              if (row < 0 || row >= in.h || column < 0 || column >= in.w) continue;
              const int64_t q = in.q[in.at(b, row, column, c)];
              window.sum += q, ++window.inside, window.most = std::max(window.most, q);
            }
          f(out.at(b, y, x, c), window);
        }
}

/// The same for adaptive pools.
template <class F>
void each_adaptive_window(const ReferenceStep& s, F&& f) {
  const ReferenceValue& in = s.x();
  const ReferenceValue& out = s.out();
  for (int64_t b = 0; b < out.n; ++b)
    for (int64_t y = 0; y < out.h; ++y)
      for (int64_t x = 0; x < out.w; ++x)
        for (int64_t c = 0; c < out.c; ++c) {
          PoolWindow window;
          for (int64_t r = y * in.h / out.h; r < ((y + 1) * in.h + out.h - 1) / out.h; ++r)
            for (int64_t t = x * in.w / out.w; t < ((x + 1) * in.w + out.w - 1) / out.w; ++t) {
              const int64_t q = in.q[in.at(b, r, t, c)];
              window.sum += q, ++window.inside, window.most = std::max(window.most, q);
            }
          f(out.at(b, y, x, c), window);
        }
}

/// The code of an average.
inline int32_t averaged(const ReferenceStep& s, const PoolWindow& window, int64_t divisor) {
  const QuantParams& in = s.params(s.step().x[0]);
  const QuantParams& out = s.step().params;
  const auto m = static_cast<float>(in.scale / static_cast<double>(out.scale));
  const auto sum = static_cast<float>(window.sum - in.zero_point * window.inside);
  return rounded(
      std::fmaf(sum, m / static_cast<float>(divisor), static_cast<float>(out.zero_point)), 0.0f,
      static_cast<float>(out.max_code));
}

}  // namespace octavo

// What pools share: padding of windows, the numbers of averages, sizes of adaptive pools.
#pragma once

#include <algorithm>

#include "region/step_row.h"

namespace octavo {

/// Padding of at most half a window, as torch asks.
inline void check_pool_padding(const Line& line, const Step& step) {
  const ConvGeometry& g = step.geometry;
  const int64_t reach_h = g.dilation_h * (g.kernel_h - 1) + 1;
  const int64_t reach_w = g.dilation_w * (g.kernel_w - 1) + 1;
  if (std::max(g.pad_top, step.pad_bottom) > reach_h / 2 ||
      std::max(g.pad_left, step.pad_right) > reach_w / 2) {
    line.fail("padding of at most half the window");
  }
}

inline void derive_average(const ProgramStep& s, const Shape&, const Shape&, Derived* d) {
  const double s_out = s.step().params.scale;
  d->m = code_factor(s.params(s.step().x[0]).scale / s_out);
  d->offset = static_cast<float>(s.step().params.zero_point);
}

inline Shape adaptive_shape(const ShapeStep& s) {
  Shape shape = s.x();
  const auto [h, w] = s.step().size;
  if (h > 0) shape.h = h;
  if (w > 0) shape.w = w;
  if (s.x().h < 1 || s.x().w < 1) s.fail("an image of at least one pixel", text_of(s.x()));
  return shape;
}

}  // namespace octavo

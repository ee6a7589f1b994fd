// What convolutions and pools share: the sizes that windows lead to.
#pragma once

#include "region/step_row.h"

namespace octavo {

/// Number of windows along one axis; `after` is the padding at its end.
inline int64_t window_size(const ShapeStep& s, int64_t size, int64_t kernel, int64_t stride,
                           int64_t before, int64_t after, int64_t dilation) {
  const bool ceil_mode = s.step().ceil_mode;
  const int64_t reach = dilation * (kernel - 1) + 1;
  // In ceil mode the last window may reach beyond the padded input, but must start inside the input
  // or the padding before it, as in torch. It may be the only window.
  const int64_t room = size + before + after - reach + (ceil_mode ? stride - 1 : 0);
  int64_t out = room < 0 ? 0 : room / stride + 1;
  if (ceil_mode && (out - 1) * stride >= size + before) --out;
  if (out < 1) {
    s.fail("a window that fits into the padded input of " + std::to_string(size + before + after),
           "a reach of " + std::to_string(reach));
  }
  return out;
}

/// The shape of x after the step's windows.
inline Shape windowed(const ShapeStep& s) {
  const Step& step = s.step();
  const ConvGeometry& g = step.geometry;
  Shape shape = s.x();
  shape.h =
      window_size(s, shape.h, g.kernel_h, g.stride_h, g.pad_top, step.pad_bottom, g.dilation_h);
  shape.w =
      window_size(s, shape.w, g.kernel_w, g.stride_w, g.pad_left, step.pad_right, g.dilation_w);
  return shape;
}

}  // namespace octavo

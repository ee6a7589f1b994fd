// What conv, conv_f32 and conv_dynamic share beyond product.h: windows and the halo that they read.
#pragma once

#include <algorithm>

#include "region/steps/product.h"
#include "region/steps/window.h"

namespace octavo {

inline Shape conv_shape(const ShapeStep& s) { return with_channels(s, windowed(s)); }

inline int64_t conv_halo(const Step& step, const Shape& x, const Shape& value) {
  const ConvGeometry& g = step.geometry;
  const int64_t below =
      (value.h - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1 - x.h - g.pad_top;
  const int64_t right =
      (value.w - 1) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1 - x.w - g.pad_left;
  return std::max({g.pad_top, g.pad_left, below, right, int64_t{0}});
}

/// A convolution with a wide kernel would have to gather an input whose pixels are not contiguous,
/// so it gets a value with pixels of its own. All other drivers read images of any pixel pitch.
inline bool has_wide_kernel(const Step& step) {
  return step.geometry.kernel_w > 1 || step.geometry.kernel_h > 1;
}

}  // namespace octavo

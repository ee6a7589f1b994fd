// Operator linear_dynamic: a layer on its own, its input quantized row by row. Checks, allocates,
// calls kernels/conv.cpp.
#include "checks.h"
#include "kernels.h"

namespace octavo {
namespace {

/// Whether all leading dimensions of x are one dimension of rows with one pitch (elements).
bool has_row_pitch(const Tensor& x, int64_t* pitch) {
  const int64_t k = x.size(x.dim() - 1);
  if (k > 1 && x.stride(x.dim() - 1) != 1) return false;
  *pitch = k;
  bool first = true;
  int64_t expected = 0;
  for (int64_t d = x.dim() - 2; d >= 0; --d) {
    if (x.size(d) == 1) continue;
    if (first) {
      *pitch = x.stride(d);
      expected = *pitch * x.size(d);
      first = false;
    } else {
      if (x.stride(d) != expected) return false;
      expected *= x.size(d);
    }
  }
  return *pitch >= 0;
}

Tensor linear_dynamic_op(const Tensor& x, const Tensor& panel, int64_t out_features) {
  check_tensor("linear_dynamic: x", x, ScalarType::Float);
  const PanelHeader& header = checked_panel("linear_dynamic: panel", panel, /*any_layout=*/false);
  if (header.kernel_h != 1 || header.kernel_w != 1 || header.groups != 1) {
    fail("linear_dynamic: panel: expected a linear layer's, got a convolution's with kernel ",
         header.kernel_h, "x", header.kernel_w, " and ", header.groups, " groups.");
  }
  if (out_features != header.out_channels) {
    fail("linear_dynamic: out_features: expected ", header.out_channels, ", got ", out_features,
         ".");
  }
  if (x.dim() < 1 || x.size(x.dim() - 1) != header.in_channels) {
    fail("linear_dynamic: x: expected last dimension ", header.in_channels, ", got shape ",
         shape_of(x), ".");
  }
  int64_t pitch = 0;
  const Tensor source = has_row_pitch(x, &pitch) ? x : as_contiguous(x);
  if (source.get() != x.get()) pitch = header.in_channels;
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) rows *= x.size(d);
  std::vector<int64_t> shape = sizes_of(x);
  shape.back() = out_features;
  Tensor y = empty(shape, ScalarType::Float);
  if (y.numel() == 0) return y;
  linear_dynamic(source.const_data_ptr<float>(), rows, header.in_channels, pitch, &header,
                 y.mutable_data_ptr<float>(), out_features);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("linear_dynamic", TORCH_BOX(&linear_dynamic_op));
}

}  // namespace octavo

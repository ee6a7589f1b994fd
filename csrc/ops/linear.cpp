// Operator linear_dynamic: a layer on its own, its input quantized row by row. Checks, allocates,
// calls kernels/linear_dynamic.cpp.
#include "checks.h"
#include "kernels.h"

namespace octavo {
namespace {

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
  const RowView rows = rows_of(x);
  std::vector<int64_t> shape = sizes_of(x);
  shape.back() = out_features;
  Tensor y = empty(shape, ScalarType::Float);
  if (y.numel() == 0) return y;
  linear_dynamic(rows.source.const_data_ptr<float>(), rows.count, header.in_channels, rows.pitch,
                 &header, y.mutable_data_ptr<float>(), out_features);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("linear_dynamic", TORCH_BOX(&linear_dynamic_op));
}

}  // namespace octavo

// Operators linear_lowbit (activations quantized row by row, or left float) and
// linear_lowbit_static (given parameters). Check, allocate, call kernels/lowbit.cpp.
#include "checks.h"
#include "kernels.h"

namespace octavo {
namespace {

/// The result of a layer over x, filled by `multiply(header, rows, y)`.
template <class Multiply>
Tensor linear(const char* name, const Tensor& x, const Tensor& packed, int64_t out_features,
              Multiply&& multiply) {
  const std::string where(name);
  check_tensor((where + ": x").c_str(), x, ScalarType::Float);
  const LowbitHeader& header =
      checked_lowbit((where + ": packed").c_str(), packed, LowbitOrder::kColumns);
  if (out_features != header.out_features) {
    fail(where, ": out_features: expected ", header.out_features, ", got ", out_features, ".");
  }
  if (x.dim() < 1 || x.size(x.dim() - 1) != header.in_features) {
    fail(where, ": x: expected last dimension ", header.in_features, ", got shape ", shape_of(x),
         ".");
  }
  const RowView rows = rows_of(x);
  std::vector<int64_t> shape = sizes_of(x);
  shape.back() = out_features;
  Tensor y = empty(shape, ScalarType::Float);
  if (y.numel() > 0) multiply(header, rows, y.mutable_data_ptr<float>());
  return y;
}

Tensor linear_lowbit_op(const Tensor& x, const Tensor& packed, int64_t out_features,
                        std::string activations) {
  const bool dynamic = activations == "dynamic";
  if (!dynamic && activations != "float") {
    fail("linear_lowbit: activations: expected 'dynamic' or 'float', got '", activations, "'.");
  }
  return linear("linear_lowbit", x, packed, out_features,
                [&](const LowbitHeader& header, const RowView& rows, float* y) {
                  const auto* from = rows.source.const_data_ptr<float>();
                  if (dynamic) {
                    linear_lowbit(from, rows.count, rows.pitch, &header, y, out_features);
                  } else {
                    linear_lowbit_float(from, rows.count, rows.pitch, &header, y, out_features);
                  }
                });
}

Tensor linear_lowbit_static_op(const Tensor& x, const Tensor& packed, int64_t out_features,
                               double scale, int64_t zero_point, int64_t max_code) {
  check_range("linear_lowbit_static: max_code", max_code, 1, 255);
  check_range("linear_lowbit_static: zero_point", zero_point, 0, max_code);
  const QuantParams params{checked_scale("linear_lowbit_static: scale", scale),
                           static_cast<int32_t>(zero_point), static_cast<int32_t>(max_code)};
  return linear("linear_lowbit_static", x, packed, out_features,
                [&](const LowbitHeader& header, const RowView& rows, float* y) {
                  linear_lowbit_static(rows.source.const_data_ptr<float>(), rows.count, rows.pitch,
                                       params, &header, y, out_features);
                });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("linear_lowbit", TORCH_BOX(&linear_lowbit_op));
  m.impl("linear_lowbit_static", TORCH_BOX(&linear_lowbit_static_op));
}

}  // namespace octavo

// Operators between floats and codes: quantize, quantize_per_channel, dequantize. Checks,
// allocates, calls kernels/quantize.cpp.
#include "checks.h"
#include "kernels.h"

namespace octavo {
namespace {

Tensor quantize_op(const Tensor& x, double scale, int64_t zero_point, int64_t max_code) {
  check_tensor("quantize: x", x, ScalarType::Float);
  QuantParams p;
  p.scale = checked_scale("quantize: scale", scale);
  check_range("quantize: max_code", max_code, 1, 255);
  check_range("quantize: zero_point", zero_point, 0, max_code);
  p.zero_point = static_cast<int32_t>(zero_point);
  p.max_code = static_cast<int32_t>(max_code);
  const Tensor source = as_contiguous(x);
  Tensor q = empty(sizes_of(x), ScalarType::Byte);
  quantize(source.const_data_ptr<float>(), source.numel(), p, q.mutable_data_ptr<uint8_t>());
  return q;
}

Tensor quantize_per_channel_op(const Tensor& x, const Tensor& scale, int64_t axis, int64_t qmin,
                               int64_t qmax) {
  check_tensor("quantize_per_channel: x", x, ScalarType::Float);
  check_tensor("quantize_per_channel: scale", scale, ScalarType::Float);
  axis = checked_axis("quantize_per_channel: axis", axis, x.dim());
  check_shape("quantize_per_channel: scale", scale, {x.size(axis)});
  check_range("quantize_per_channel: qmax", qmax, -128, 127);
  check_range("quantize_per_channel: qmin", qmin, -128, qmax);
  const Tensor scales = as_contiguous(scale);
  for (int64_t c = 0; c < x.size(axis); ++c) {
    checked_scale("quantize_per_channel: scale", scales.const_data_ptr<float>()[c]);
  }
  int64_t outer = 1;
  for (int64_t d = 0; d < axis; ++d) outer *= x.size(d);
  const int64_t inner = product_after(x, axis);
  const Tensor source = as_contiguous(x);
  Tensor q = empty(sizes_of(x), ScalarType::Char);
  quantize_per_channel(source.const_data_ptr<float>(), outer, x.size(axis), inner,
                       scales.const_data_ptr<float>(), static_cast<int32_t>(qmin),
                       static_cast<int32_t>(qmax), q.mutable_data_ptr<int8_t>());
  return q;
}

Tensor dequantize_op(const Tensor& q, double scale, int64_t zero_point) {
  check_tensor("dequantize: q", q, ScalarType::Byte);
  QuantParams p;
  p.scale = checked_scale("dequantize: scale", scale);
  check_range("dequantize: zero_point", zero_point, 0, 255);
  p.zero_point = static_cast<int32_t>(zero_point);
  const Tensor source = as_contiguous(q);
  Tensor y = empty(sizes_of(q), ScalarType::Float);
  dequantize(source.const_data_ptr<uint8_t>(), source.numel(), p, y.mutable_data_ptr<float>());
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("quantize", TORCH_BOX(&quantize_op));
  m.impl("quantize_per_channel", TORCH_BOX(&quantize_per_channel_op));
  m.impl("dequantize", TORCH_BOX(&dequantize_op));
}

}  // namespace octavo

// The operator clip_error. Checks, allocates, calls kernels/clip_error.cpp.
#include <optional>

#include "checks.h"
#include "kernels.h"

namespace octavo {
namespace {

const float* rows_of(const char* where, const Tensor& t, std::initializer_list<int64_t> shape,
                     Tensor& kept) {
  check_tensor(where, t, ScalarType::Float);
  check_shape(where, t, shape);
  kept = as_contiguous(t);
  return kept.const_data_ptr<float>();
}

Tensor clip_error_op(const Tensor& x, const Tensor& scale, const Tensor& unit, const Tensor& ends,
                     const std::optional<Tensor>& importance) {
  check_tensor("clip_error: x", x, ScalarType::Float);
  check_tensor("clip_error: scale", scale, ScalarType::Float);
  if (x.dim() != 2 || scale.dim() != 2) {
    fail("clip_error: expected x [rows, columns] and scale [rows, scales], got ", shape_of(x),
         " and ", shape_of(scale), ".");
  }
  ClipErrors e{};
  e.rows = x.size(0);
  e.columns = x.size(1);
  e.scales = scale.size(1);
  Tensor kept[5];
  e.x = rows_of("clip_error: x", x, {e.rows, e.columns}, kept[0]);
  e.scale = rows_of("clip_error: scale", scale, {e.rows, e.scales}, kept[1]);
  e.unit = rows_of("clip_error: unit", unit, {e.rows}, kept[2]);
  e.low = rows_of("clip_error: ends", ends, {2, e.rows}, kept[3]);
  e.high = e.low + e.rows;
  if (importance.has_value()) {
    e.importance = rows_of("clip_error: importance", *importance, {e.rows, e.columns}, kept[4]);
  }
  Tensor error = empty({e.rows, e.scales}, ScalarType::Double);
  if (error.numel() > 0) clip_error(e, error.mutable_data_ptr<double>());
  return error;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) { m.impl("clip_error", TORCH_BOX(&clip_error_op)); }

}  // namespace octavo

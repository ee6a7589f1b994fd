// What operators of fake quantization share: values of three types, results in their layout, masks.
#pragma once

#include "checks.h"
#include "kernels.h"

namespace octavo {

/// The type of a float32, bfloat16 or float16 tensor on the CPU.
inline FloatType checked_values(const char* where, const Tensor& x) {
  switch (x.defined() ? x.scalar_type() : ScalarType::Undefined) {
    case ScalarType::BFloat16:
      check_tensor(where, x, ScalarType::BFloat16);
      return FloatType::kBf16;
    case ScalarType::Half:
      check_tensor(where, x, ScalarType::Half);
      return FloatType::kF16;
    default:
      check_tensor(where, x, ScalarType::Float);
      return FloatType::kF32;
  }
}

/// An uninitialised tensor with the sizes, strides and type of x.
inline Tensor empty_as(const Tensor& x) {
  return empty_strided(x.sizes().data(), x.strides().data(), x.dim(), x.scalar_type());
}

/// Bits for every value, shape [rows, ceil(row / 8)].
inline Tensor empty_mask(const FakeSteps& s) {
  const MaskShape m = mask_shape(s);
  const int64_t sizes[2] = {m.rows, (m.row + 7) / 8};
  const int64_t strides[2] = {sizes[1] > 1 ? sizes[1] : 1, 1};
  return empty_strided(sizes, strides, 2, ScalarType::Byte);
}

}  // namespace octavo

// Operator embedding_lowbit: rows of a packed table as floats. Checks, allocates, calls
// kernels/lowbit.cpp.
#include "checks.h"
#include "kernels.h"

namespace octavo {
namespace {

Tensor embedding_lowbit_op(const Tensor& indices, const Tensor& packed, int64_t features) {
  check_tensor("embedding_lowbit: indices", indices, ScalarType::Long);
  const LowbitHeader& header =
      checked_lowbit("embedding_lowbit: packed", packed, LowbitOrder::kRows);
  if (features != header.in_features) {
    fail("embedding_lowbit: features: expected ", header.in_features, ", got ", features, ".");
  }
  const Tensor rows = as_contiguous(indices);
  const auto* row = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.numel(); ++i) {
    if (row[i] < 0 || row[i] >= header.out_features) {
      fail("embedding_lowbit: indices: expected 0..", header.out_features - 1, ", got ", row[i],
           " at position ", i, ".");
    }
  }
  std::vector<int64_t> shape = sizes_of(indices);
  shape.push_back(features);
  Tensor y = empty(shape, ScalarType::Float);
  if (y.numel() == 0) return y;
  embedding_lowbit(row, rows.numel(), &header, y.mutable_data_ptr<float>());
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("embedding_lowbit", TORCH_BOX(&embedding_lowbit_op));
}

}  // namespace octavo

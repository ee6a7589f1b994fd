// Operators that observe floats: minmax, minmax_per_channel, histogram. Checks, allocates, calls
// kernels/minmax.cpp. None depends on the order of elements inside a channel, so any dense layout
// is read in place.
#include <algorithm>
#include <tuple>

#include "checks.h"
#include "kernels.h"
#include "memory_order.h"

namespace octavo {
namespace {

std::tuple<Tensor, Tensor> minmax_op(const Tensor& x) {
  check_tensor("minmax: x", x, ScalarType::Float);
  const Tensor source = dense(x);
  const MinMax result = minmax(source.const_data_ptr<float>(), source.numel());
  Tensor range = empty({2}, ScalarType::Float);
  Tensor non_finite = empty({1}, ScalarType::Long);
  range.mutable_data_ptr<float>()[0] = result.min;
  range.mutable_data_ptr<float>()[1] = result.max;
  non_finite.mutable_data_ptr<int64_t>()[0] = result.non_finite;
  return {range, non_finite};
}

std::tuple<Tensor, Tensor> minmax_per_channel_op(const Tensor& x, int64_t axis) {
  check_tensor("minmax_per_channel: x", x, ScalarType::Float);
  axis = checked_axis("minmax_per_channel: axis", axis, x.dim());
  const Split s = split_at(x, axis);
  std::vector<MinMax> results(static_cast<size_t>(s.channels));
  minmax_per_channel(s.source.const_data_ptr<float>(), s.outer, s.channels, s.inner,
                     results.data());
  Tensor ranges = empty({2, s.channels}, ScalarType::Float);
  Tensor non_finite = empty({s.channels}, ScalarType::Long);
  auto* range = ranges.mutable_data_ptr<float>();
  auto* count = non_finite.mutable_data_ptr<int64_t>();
  for (int64_t c = 0; c < s.channels; ++c) {
    range[c] = results[static_cast<size_t>(c)].min;
    range[s.channels + c] = results[static_cast<size_t>(c)].max;
    count[c] = results[static_cast<size_t>(c)].non_finite;
  }
  return {ranges, non_finite};
}

Tensor histogram_op(const Tensor& x, int64_t exponent, int64_t first, int64_t bins) {
  check_tensor("histogram: x", x, ScalarType::Float);
  check_range("histogram: exponent", exponent, -149, 127);
  check_range("histogram: bins", bins, 1, int64_t{1} << 24);
  check_range("histogram: first", first, -(int64_t{1} << 40), int64_t{1} << 40);
  const Tensor source = dense(x);
  Tensor counts = empty({bins}, ScalarType::Long);
  auto* count = counts.mutable_data_ptr<int64_t>();
  std::fill(count, count + bins, 0);
  histogram(source.const_data_ptr<float>(), source.numel(), static_cast<int32_t>(exponent), first,
            bins, count);
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("minmax", TORCH_BOX(&minmax_op));
  m.impl("minmax_per_channel", TORCH_BOX(&minmax_per_channel_op));
  m.impl("histogram", TORCH_BOX(&histogram_op));
}

}  // namespace octavo

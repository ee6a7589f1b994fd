// Operators that observe floats: minmax, minmax_per_channel, histogram. Checks, allocates, calls
// kernels/minmax.cpp. None depends on the order of elements inside a channel, so any dense layout
// is read in place.
#include <algorithm>
#include <tuple>

#include "checks.h"
#include "kernels.h"

namespace octavo {
namespace {

/// A dense tensor as [outer, channels, inner] in memory order.
struct Split {
  Tensor source;
  int64_t outer, channels, inner;
};

/// Whether the tensor's elements fill a stretch of memory without holes or overlaps; `order` then
/// lists its dimensions from the largest stride to the smallest.
bool is_dense(const Tensor& x, std::vector<int64_t>* order) {
  order->clear();
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) != 1) order->push_back(d);
  }
  std::stable_sort(order->begin(), order->end(),
                   [&](int64_t a, int64_t b) { return x.stride(a) > x.stride(b); });
  int64_t expected = 1;
  for (size_t i = order->size(); i-- > 0;) {
    if (x.stride((*order)[i]) != expected) return false;
    expected *= x.size((*order)[i]);
  }
  return true;
}

Tensor dense(const Tensor& x) {
  std::vector<int64_t> order;
  return is_dense(x, &order) ? x : as_contiguous(x);
}

Split split_at(const Tensor& x, int64_t axis) {
  Split s{x, 1, x.size(axis), 1};
  std::vector<int64_t> order;
  if (x.size(axis) == 1 || !is_dense(x, &order)) {
    s.source = as_contiguous(x);
    for (int64_t d = 0; d < axis; ++d) s.outer *= x.size(d);
    for (int64_t d = axis + 1; d < x.dim(); ++d) s.inner *= x.size(d);
    return s;
  }
  const auto at = std::find(order.begin(), order.end(), axis);
  for (auto d = order.begin(); d != at; ++d) s.outer *= x.size(*d);
  for (auto d = at + 1; d != order.end(); ++d) s.inner *= x.size(*d);
  return s;
}

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

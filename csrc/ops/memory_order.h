// How a tensor's elements lie in memory: dense or not, and a dense tensor's dimensions before,
// along and after an axis. Included by operators that read any dense layout in place.
#pragma once

#include <algorithm>
#include <vector>

#include "checks.h"

namespace octavo {

/// Whether elements of these sizes and strides fill one block of memory without holes or overlaps;
/// `order` then lists the dimensions from the largest stride to the smallest.
inline bool is_dense(const int64_t* sizes, const int64_t* strides, int64_t dim,
                     std::vector<int64_t>* order) {
  order->clear();
  for (int64_t d = 0; d < dim; ++d) {
    if (sizes[d] != 1) order->push_back(d);
  }
  std::stable_sort(order->begin(), order->end(),
                   [&](int64_t a, int64_t b) { return strides[a] > strides[b]; });
  int64_t expected = 1;
  for (size_t i = order->size(); i-- > 0;) {
    if (strides[(*order)[i]] != expected) return false;
    expected = product(expected, sizes[(*order)[i]]);
  }
  return true;
}
inline bool is_dense(const Tensor& x, std::vector<int64_t>* order) {
  return is_dense(x.sizes().data(), x.strides().data(), x.dim(), order);
}

/// The tensor itself where it is dense, else a contiguous copy.
inline Tensor dense(const Tensor& x) {
  if (x.is_contiguous()) return x;
  std::vector<int64_t> order;
  return is_dense(x, &order) ? x : as_contiguous(x);
}

/// A dense tensor as [outer, channels, inner] in memory order.
struct Split {
  Tensor source;
  int64_t outer, channels, inner;
};

inline Split split_at(const Tensor& x, int64_t axis) {
  Split s{x, 1, x.size(axis), 1};
  std::vector<int64_t> order;
  if (x.size(axis) == 1 || x.numel() == 0 || !is_dense(x, &order)) {
    s.source = as_contiguous(x);
    for (int64_t d = 0; d < axis; ++d) s.outer *= x.size(d);
    s.inner = product_after(x, axis);
    return s;
  }
  const auto at = std::find(order.begin(), order.end(), axis);
  for (auto d = order.begin(); d != at; ++d) s.outer *= x.size(*d);
  for (auto d = at + 1; d != order.end(); ++d) s.inner *= x.size(*d);
  return s;
}

}  // namespace octavo

// The operator that moves a range by one batch: observe_range. Checks, calls kernels/observe.cpp.
#include <algorithm>
#include <optional>
#include <tuple>

#include "checks.h"
#include "kernels.h"
#include "memory_order.h"

namespace octavo {
namespace {

FloatType type_of(const Tensor& x) {
  const ScalarType type = x.defined() ? x.scalar_type() : ScalarType::Undefined;
  const bool half = type == ScalarType::Half || type == ScalarType::BFloat16;
  check_tensor("observe_range: x", x, half ? type : ScalarType::Float);
  return type == ScalarType::Half       ? FloatType::kF16
         : type == ScalarType::BFloat16 ? FloatType::kBf16
                                        : FloatType::kF32;
}

// Values 0, step, 2 * step ... in the order of indices, whatever the strides.
std::vector<float> sample_of(const Tensor& x, FloatType type) {
  const int64_t step = (x.numel() + kRangeSample - 1) / kRangeSample;
  std::vector<float> sample;
  const void* data = x.const_data_ptr();
  for (int64_t i = 0; i < x.numel(); i += step) {
    int64_t rest = i, offset = 0;
    for (int64_t d = x.dim(); d-- > 0;) {
      offset += rest % x.size(d) * x.stride(d);
      rest /= x.size(d);
    }
    float value;
    widen(type, data, offset, 1, &value);
    sample.push_back(value);
  }
  return sample;
}

/// Moves `state` in place where `update`; scale, zero point, and how many values are not finite.
std::tuple<Tensor, Tensor, Tensor> observe_range_op(const Tensor& x, Tensor state, int64_t qmin,
                                                    int64_t qmax, double momentum,
                                                    std::optional<int64_t> axis, bool symmetric,
                                                    bool mse, bool update, bool relu) {
  const FloatType type = type_of(x);
  check_tensor("observe_range: state", state, ScalarType::Float);
  check_range("observe_range: qmax", qmax, -127, 255);
  check_range("observe_range: qmin", qmin, -128, qmax - 1);
  if (symmetric) check_range("observe_range: qmax", qmax, 1, 255);
  int64_t channels = 1, number = 0;
  if (axis.has_value()) {
    number = checked_axis("observe_range: axis", *axis, x.dim());
    channels = x.size(number);
    check_shape("observe_range: state", state, {2, channels});
  } else {
    check_shape("observe_range: state", state, {2});
  }
  if (!state.is_contiguous()) {
    fail("observe_range: state: expected a contiguous tensor, got strides ",
         text_of(state.strides().data(), state.dim()), ".");
  }
  if (mse && channels > 1) fail("observe_range: mse: expected one channel, got ", channels, ".");
  auto* range = state.mutable_data_ptr<float>();
  const RangeRule rule{static_cast<int32_t>(qmin), static_cast<int32_t>(qmax), symmetric};
  int64_t bad = 0;
  if (update && x.numel() > 0) {
    std::vector<MinMax> now(static_cast<size_t>(channels));
    if (channels == 1) {
      const Tensor source = dense(x);
      observed_ranges(type, source.const_data_ptr(), 1, 1, source.numel(), relu, now.data());
    } else {
      const Split s = split_at(x, number);
      observed_ranges(type, s.source.const_data_ptr(), s.outer, s.channels, s.inner, relu,
                      now.data());
    }
    if (mse && now[0].min <= now[0].max) {
      const std::vector<float> sample = sample_of(x, type);
      now[0] = shrunk(sample.data(), static_cast<int64_t>(sample.size()), relu, rule, now[0]);
    }
    for (const MinMax& m : now) bad += m.non_finite;
    move_range(now.data(), channels, static_cast<float>(momentum), range);
  }
  Tensor scale = empty({channels}, ScalarType::Float);
  Tensor zero_point = empty({channels}, ScalarType::Float);
  Tensor non_finite = empty({1}, ScalarType::Long);
  *non_finite.mutable_data_ptr<int64_t>() = bad;
  steps_of_ranges(range, channels, rule, scale.mutable_data_ptr<float>(),
                  zero_point.mutable_data_ptr<float>());
  return {scale, zero_point, non_finite};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) { m.impl("observe_range", TORCH_BOX(&observe_range_op)); }

}  // namespace octavo

// The operator that moves a range by one batch and fake-quantizes by it. Checks, allocates, calls
// kernels/observe.cpp and kernels/fake_quantize.cpp.
#include <algorithm>
#include <optional>
#include <tuple>

#include "checks.h"
#include "fake_values.h"
#include "kernels.h"
#include "memory_order.h"

namespace octavo {
namespace {

constexpr int64_t kOne = 1;

// Values 0, step, 2 * step ... in the order of indices, whatever the strides.
std::vector<float> sample_of(const Tensor& x, FloatType type) {
  const int64_t step = (x.numel() + kRangeSample - 1) / kRangeSample;
  std::vector<float> sample;
  sample.reserve(kRangeSample);
  const void* data = x.const_data_ptr();
  const bool in_order = x.is_contiguous();
  for (int64_t i = 0; i < x.numel(); i += step) {
    int64_t rest = i, offset = in_order ? i : 0;
    for (int64_t d = in_order ? 0 : x.dim(); d-- > 0;) {
      offset += rest % x.size(d) * x.stride(d);
      rest /= x.size(d);
    }
    float value;
    widen(type, data, offset, 1, &value);
    sample.push_back(value);
  }
  return sample;
}

/// Moves `state` in place where `update`, and fake-quantizes x by it: y, scale, zero point, and how
/// many values are not finite. The mask goes to `mask` unless that is null.
std::tuple<Tensor, Tensor, Tensor, Tensor> observed(const Tensor& x, Tensor& state, int64_t qmin,
                                                    int64_t qmax, double momentum,
                                                    std::optional<int64_t> axis, bool symmetric,
                                                    bool mse, bool update, bool relu,
                                                    std::optional<Tensor>* mask) {
  const FloatType type = checked_values("observe_fake_quantize: x", x);
  check_tensor("observe_fake_quantize: state", state, ScalarType::Float);
  check_range("observe_fake_quantize: qmax", qmax, -127, 255);
  check_range("observe_fake_quantize: qmin", qmin, -128, qmax - 1);
  if (symmetric) check_range("observe_fake_quantize: qmax", qmax, 1, 255);
  int64_t channels = 1, number = 0;
  if (axis.has_value()) {
    number = checked_axis("observe_fake_quantize: axis", *axis, x.dim());
    channels = x.size(number);
    check_shape("observe_fake_quantize: state", state, {2, channels});
  } else {
    check_shape("observe_fake_quantize: state", state, {2});
  }
  if (!state.is_contiguous()) {
    fail("observe_fake_quantize: state: expected a contiguous tensor, got strides ",
         text_of(state.strides().data(), state.dim()), ".");
  }
  if (mse && channels > 1)
    fail("observe_fake_quantize: mse: expected one channel, got ", channels, ".");
  // `state` is written last, so that a call that runs out of memory leaves it as it was.
  std::vector<float> moved(state.const_data_ptr<float>(),
                           state.const_data_ptr<float>() + state.numel());
  float* range = moved.data();
  const RangeRule rule{static_cast<int32_t>(qmin), static_cast<int32_t>(qmax), symmetric};
  Split s{x, 1, 1, x.numel()};
  if (channels == 1 || x.numel() == 0) {
    s.source = dense(x);
  } else {
    s = split_at(x, number);
  }
  int64_t bad = 0;
  if (update && x.numel() > 0) {
    std::vector<MinMax> now(static_cast<size_t>(channels));
    observed_ranges(type, s.source.const_data_ptr(), s.outer, s.channels, s.inner, relu,
                    now.data());
    if (mse && now[0].min <= now[0].max) {
      const std::vector<float> sample = sample_of(x, type);
      now[0] = shrunk(sample.data(), static_cast<int64_t>(sample.size()), relu, rule, now[0]);
    }
    for (const MinMax& m : now) bad += m.non_finite;
    move_range(now.data(), channels, static_cast<float>(momentum), range);
  }
  Tensor scale = empty_strided(&channels, &kOne, 1, ScalarType::Float);
  Tensor zero_point = empty_strided(&channels, &kOne, 1, ScalarType::Float);
  Tensor non_finite = empty_strided(&kOne, &kOne, 1, ScalarType::Long);
  *non_finite.mutable_data_ptr<int64_t>() = bad;
  steps_of_ranges(range, channels, rule, scale.mutable_data_ptr<float>(),
                  zero_point.mutable_data_ptr<float>());
  const FakeSteps steps{s.outer,
                        s.channels,
                        s.inner,
                        s.inner > 0 ? s.inner : 1,
                        rule.qmin,
                        rule.qmax,
                        relu,
                        false,
                        scale.const_data_ptr<float>(),
                        zero_point.const_data_ptr<float>()};
  Tensor y = empty_as(s.source);
  if (mask != nullptr) *mask = empty_mask(steps);
  fake_quantize(type, s.source.const_data_ptr(), steps, y.mutable_data_ptr(),
                mask != nullptr ? (*mask)->mutable_data_ptr<uint8_t>() : nullptr);
  if (update) std::copy(moved.begin(), moved.end(), state.mutable_data_ptr<float>());
  return {y, scale, zero_point, non_finite};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> observe_fake_quantize_op(
    const Tensor& x, Tensor state, int64_t qmin, int64_t qmax, double momentum,
    std::optional<int64_t> axis, bool symmetric, bool mse, bool update, bool relu) {
  return observed(x, state, qmin, qmax, momentum, axis, symmetric, mse, update, relu, nullptr);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> observe_fake_quantize_masked_op(
    const Tensor& x, Tensor state, int64_t qmin, int64_t qmax, double momentum,
    std::optional<int64_t> axis, bool symmetric, bool mse, bool update, bool relu) {
  std::optional<Tensor> mask;
  auto [y, scale, zero_point, non_finite] =
      observed(x, state, qmin, qmax, momentum, axis, symmetric, mse, update, relu, &mask);
  return {y, scale, zero_point, non_finite, *mask};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("observe_fake_quantize", TORCH_BOX(&observe_fake_quantize_op));
  m.impl("observe_fake_quantize_masked", TORCH_BOX(&observe_fake_quantize_masked_op));
}

}  // namespace octavo

// Operators of fake quantization and their gradients. Checks, allocates, calls
// kernels/fake_quantize.cpp. Any dense layout is read in place and kept: results have the strides
// of x, or are contiguous where x is not dense.
#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "checks.h"
#include "fake_values.h"
#include "kernels.h"
#include "memory_order.h"

namespace octavo {
namespace {

void fill_zero(Tensor* sums) { std::fill_n(sums->mutable_data_ptr<float>(), sums->numel(), 0.0f); }

bool same_sizes(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d) same = a.size(d) == b.size(d);
  return same;
}

/// `dy` with the strides of `layout`, which has its sizes and type: itself or a copy.
Tensor in_layout(const char* where, const Tensor& dy, const Tensor& layout) {
  check_tensor(where, dy, layout.scalar_type());
  if (!same_sizes(dy, layout)) {
    fail(where, ": expected shape ", shape_of(layout), ", got ", shape_of(dy), ".");
  }
  bool same = true;
  for (int64_t d = 0; same && d < dy.dim(); ++d) {
    same = dy.size(d) == 1 || dy.stride(d) == layout.stride(d);
  }
  if (same) return dy;
  Tensor copy = empty_as(layout);
  torch::stable::copy_(copy, dy);
  return copy;
}

/// Dense values, and how they share the parameters, which it keeps alive.
struct Prepared {
  FloatType type;
  Tensor source, scale;
  std::optional<Tensor> zero_point;
  FakeSteps steps;
};

struct Options {
  int64_t qmin = 0, qmax = 0;
  std::optional<int64_t> axis;
  int64_t group_size = 0;
  bool relu = false, learned = false;
};

void check_values(const FakeSteps& s, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    checked_scale("fake_quantize: scale", static_cast<double>(s.scale[i]));
    if (s.zero_point == nullptr) continue;
    const float z = s.zero_point[i];
    if (!(z >= static_cast<float>(s.qmin) && z <= static_cast<float>(s.qmax)) ||
        z != std::nearbyint(z)) {
      fail("fake_quantize: zero_point: expected an integer in ", s.qmin, "..", s.qmax, ", got ", z,
           ".");
    }
  }
}

Prepared prepare(FloatType type, const Tensor& x, const Tensor& scale,
                 const std::optional<Tensor>& zero_point, const Options& o) {
  Prepared p{type, x, scale, zero_point, {}};
  FakeSteps& s = p.steps;
  s = {1,
       1,
       x.numel(),
       0,
       static_cast<int32_t>(o.qmin),
       static_cast<int32_t>(o.qmax),
       o.relu,
       o.learned,
       nullptr,
       nullptr};
  check_range("fake_quantize: qmax", o.qmax, -128, 255);
  check_range("fake_quantize: qmin", o.qmin, -128, o.qmax);
  int64_t parameters = 1;
  if (o.group_size != 0) {
    if (x.dim() == 0 || o.group_size < 0 || o.group_size % 16 != 0 ||
        (o.axis.has_value() && *o.axis != 0 && *o.axis != -x.dim())) {
      fail(
          "fake_quantize: group_size: expected a multiple of 16, axis 0 and x of rank 1 or more, "
          "got ",
          o.group_size, " and rank ", x.dim(), ".");
    }
    p.source = as_contiguous(x);
    s.channels = x.size(0);
    s.inner = product_after(x, 0);
    s.group = o.group_size;
    parameters = s.channels * groups_of(s);
  } else if (o.axis.has_value()) {
    const int64_t axis = checked_axis("fake_quantize: axis", *o.axis, x.dim());
    parameters = x.size(axis);
    if (parameters == 1 || x.numel() == 0) {
      p.source = dense(x);
    } else {
      const Split split = split_at(x, axis);
      p.source = split.source;
      s.outer = split.outer;
      s.channels = split.channels;
      s.inner = split.inner;
    }
  } else {
    p.source = dense(x);
  }
  if (s.group == 0) s.group = s.inner > 0 ? s.inner : 1;
  check_tensor("fake_quantize: scale", scale, ScalarType::Float);
  const int64_t dims = o.group_size != 0 ? 2 : 1;
  const bool per_part = o.group_size != 0 || o.axis.has_value();
  if (scale.numel() != parameters || (per_part && scale.dim() != dims) ||
      (o.group_size != 0 && scale.size(0) != x.size(0))) {
    fail("fake_quantize: scale: expected ", parameters, " numbers, got shape ", shape_of(scale),
         ".");
  }
  p.scale = as_contiguous(scale);
  s.scale = p.scale.const_data_ptr<float>();
  if (zero_point.has_value()) {
    check_tensor("fake_quantize: zero_point", *zero_point, ScalarType::Float);
    if (!same_sizes(*zero_point, scale)) {
      fail("fake_quantize: zero_point: expected ", parameters, " numbers, got shape ",
           shape_of(*zero_point), ".");
    }
    p.zero_point = as_contiguous(*zero_point);
    s.zero_point = p.zero_point->const_data_ptr<float>();
  } else if (o.qmin > 0 || o.qmax < 0) {
    fail("fake_quantize: qmin: expected 0 among the codes, got ", o.qmin, "..", o.qmax, ".");
  }
  if (!o.learned) check_values(s, parameters);
  return p;
}

Prepared prepare(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& zero_point,
                 const Options& o) {
  return prepare(checked_values("fake_quantize: x", x), x, scale, zero_point, o);
}

Tensor fake_quantize_op(const Tensor& x, const Tensor& scale, std::optional<Tensor> zero_point,
                        int64_t qmin, int64_t qmax, std::optional<int64_t> axis, int64_t group_size,
                        bool relu, bool learned) {
  const Prepared p = prepare(x, scale, zero_point, {qmin, qmax, axis, group_size, relu, learned});
  Tensor y = empty_as(p.source);
  fake_quantize(p.type, p.source.const_data_ptr(), p.steps, y.mutable_data_ptr(), nullptr);
  return y;
}

/// A learned step for all values, and whether these are finite.
std::tuple<Tensor, Tensor> fake_quantize_watched_op(const Tensor& x, const Tensor& scale,
                                                    std::optional<Tensor> zero_point, int64_t qmin,
                                                    int64_t qmax, bool relu) {
  const Prepared p = prepare(x, scale, zero_point, {qmin, qmax, std::nullopt, 0, relu, true});
  Tensor y = empty_as(p.source);
  Tensor finite = empty({1}, ScalarType::Byte);
  *finite.mutable_data_ptr<uint8_t>() =
      fake_quantize_watched(p.type, p.source.const_data_ptr(), p.steps, y.mutable_data_ptr());
  return {y, finite};
}

std::tuple<Tensor, Tensor> fake_quantize_masked_op(const Tensor& x, const Tensor& scale,
                                                   std::optional<Tensor> zero_point, int64_t qmin,
                                                   int64_t qmax, std::optional<int64_t> axis,
                                                   int64_t group_size, bool relu) {
  const Prepared p = prepare(x, scale, zero_point, {qmin, qmax, axis, group_size, relu, false});
  Tensor y = empty_as(p.source);
  Tensor mask = empty_mask(p.steps);
  fake_quantize(p.type, p.source.const_data_ptr(), p.steps, y.mutable_data_ptr(),
                mask.mutable_data_ptr<uint8_t>());
  return {y, mask};
}

Tensor fake_quantize_backward_op(const Tensor& dy, const Tensor& mask,
                                 std::vector<int64_t> strides) {
  const FloatType type = checked_values("fake_quantize_backward: dy", dy);
  check_tensor("fake_quantize_backward: mask", mask, ScalarType::Byte);
  if (static_cast<int64_t>(strides.size()) != dy.dim()) {
    fail("fake_quantize_backward: strides: expected ", dy.dim(), " of them, got ", strides.size(),
         ".");
  }
  if (dy.numel() == 0) return empty_as(dy);
  std::vector<int64_t> order;
  if (!is_dense(dy.sizes().data(), strides.data(), dy.dim(), &order)) {
    fail("fake_quantize_backward: strides: expected those of a dense tensor, got ",
         text_of(strides.data(), dy.dim()), ".");
  }
  Tensor dx = empty_strided(dy.sizes().data(), strides.data(), dy.dim(), dy.scalar_type());
  if (mask.dim() != 2 || !mask.is_contiguous() || mask.size(0) == 0 ||
      dy.numel() % mask.size(0) != 0 || mask.size(1) != (dy.numel() / mask.size(0) + 7) / 8) {
    fail("fake_quantize_backward: mask: expected the one of ", dy.numel(), " values, got shape ",
         shape_of(mask), ".");
  }
  const Tensor source = in_layout("fake_quantize_backward: dy", dy, dx);
  fake_quantize_backward(type, source.const_data_ptr(), mask.const_data_ptr<uint8_t>(),
                         {mask.size(0), dy.numel() / mask.size(0)}, dx.mutable_data_ptr());
  return dx;
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_learned_backward_op(
    const Tensor& dy, const Tensor& x, const Tensor& scale, std::optional<Tensor> zero_point,
    int64_t qmin, int64_t qmax, std::optional<int64_t> axis, int64_t group_size, bool relu,
    double grad_scale) {
  const Prepared p = prepare(x, scale, zero_point, {qmin, qmax, axis, group_size, relu, true});
  const Tensor source = in_layout("fake_quantize_learned_backward: dy", dy, p.source);
  Tensor dx = empty_as(p.source);
  Tensor to_scale = empty(sizes_of(scale), ScalarType::Float);
  Tensor to_zero = zero_point.has_value() ? empty(sizes_of(scale), ScalarType::Float)
                                          : empty({0}, ScalarType::Float);
  if (x.numel() == 0) {
    fill_zero(&to_scale);
    fill_zero(&to_zero);
    return {dx, to_scale, to_zero};
  }
  fake_quantize_learned_backward(
      p.type, source.const_data_ptr(), p.source.const_data_ptr(), p.steps, grad_scale,
      dx.mutable_data_ptr(), to_scale.mutable_data_ptr<float>(),
      zero_point.has_value() ? to_zero.mutable_data_ptr<float>() : nullptr);
  return {dx, to_scale, to_zero};
}

/// Codes must fit one byte. `prepare` has checked that qmin and qmax are within its bounds.
void check_codes(const FakeSteps& s) {
  check_range("fake_quantize_codes: qmax", s.qmax, s.qmin, s.qmin + 255);
}

/// q - qmin of each value, and whether the values are finite multiples of their steps: only then do
/// the codes stand for them.
std::tuple<Tensor, Tensor> fake_quantize_codes_op(const Tensor& y, const Tensor& scale,
                                                  std::optional<Tensor> zero_point, int64_t qmin,
                                                  int64_t qmax, std::optional<int64_t> axis,
                                                  int64_t group_size, bool learned) {
  check_tensor("fake_quantize_codes: y", y, ScalarType::Float);
  const Prepared p = prepare(y, scale, zero_point, {qmin, qmax, axis, group_size, false, learned});
  check_codes(p.steps);
  Tensor codes = empty_strided(p.source.sizes().data(), p.source.strides().data(), p.source.dim(),
                               ScalarType::Byte);
  Tensor exact = empty({1}, ScalarType::Byte);
  *exact.mutable_data_ptr<uint8_t>() = fake_quantize_codes(
      p.source.const_data_ptr<float>(), p.steps, codes.mutable_data_ptr<uint8_t>());
  return {codes, exact};
}

Tensor fake_quantize_values_op(const Tensor& codes, const Tensor& scale,
                               std::optional<Tensor> zero_point, int64_t qmin, int64_t qmax,
                               std::optional<int64_t> axis, int64_t group_size, bool learned) {
  check_tensor("fake_quantize_values: codes", codes, ScalarType::Byte);
  const Prepared p = prepare(FloatType::kF32, codes, scale, zero_point,
                             {qmin, qmax, axis, group_size, false, learned});
  check_codes(p.steps);
  Tensor y = empty_strided(p.source.sizes().data(), p.source.strides().data(), p.source.dim(),
                           ScalarType::Float);
  fake_quantize_values(p.source.const_data_ptr<uint8_t>(), p.steps, y.mutable_data_ptr<float>());
  return y;
}

void check_bits(int64_t bits) { check_range("fake_quantize_clipped: bits", bits, 2, 8); }

float alpha_of(const Tensor& alpha) {
  check_tensor("fake_quantize_clipped: alpha", alpha, ScalarType::Float);
  if (alpha.numel() != 1) {
    fail("fake_quantize_clipped: alpha: expected one number, got shape ", shape_of(alpha), ".");
  }
  return *alpha.const_data_ptr<float>();
}

Tensor fake_quantize_clipped_op(const Tensor& x, const Tensor& alpha, int64_t bits) {
  const FloatType type = checked_values("fake_quantize_clipped: x", x);
  check_bits(bits);
  const int32_t top = (1 << bits) - 1;
  const float scale = alpha_of(alpha) / static_cast<float>(top);
  const Tensor source = dense(x);
  Tensor y = empty_as(source);
  const int64_t count = source.numel();
  const FakeSteps steps{1, 1, count, count > 0 ? count : 1, 0, top, false, true, &scale, nullptr};
  fake_quantize(type, source.const_data_ptr(), steps, y.mutable_data_ptr(), nullptr);
  return y;
}

std::tuple<Tensor, Tensor> fake_quantize_clipped_backward_op(const Tensor& dy, const Tensor& x,
                                                             const Tensor& alpha) {
  const FloatType type = checked_values("fake_quantize_clipped_backward: x", x);
  const float top = alpha_of(alpha);
  const Tensor values = dense(x);
  const Tensor source = in_layout("fake_quantize_clipped_backward: dy", dy, values);
  Tensor dx = empty_as(values);
  Tensor to_alpha = empty(sizes_of(alpha), ScalarType::Float);
  *to_alpha.mutable_data_ptr<float>() =
      fake_quantize_clipped_backward(type, source.const_data_ptr(), values.const_data_ptr(),
                                     values.numel(), top, dx.mutable_data_ptr());
  return {dx, to_alpha};
}

/// Levels as the kernels want them: rows of channels, and a table that is kept alive.
struct PreparedLevels {
  Prepared values;
  Tensor table;
  FakeLevels levels;
};

PreparedLevels prepare_levels(const Tensor& x, const Tensor& levels, const Tensor& scale,
                              std::optional<int64_t> axis, int64_t group_size, bool learned) {
  const char* where = "fake_quantize_levels: levels";
  if (x.dim() == 0 || (axis.has_value() && *axis != 0 && *axis != -x.dim())) {
    fail("fake_quantize_levels: axis: expected 0 and x of rank 1 or more, got rank ", x.dim(), ".");
  }
  PreparedLevels p{
      prepare(x, scale, std::nullopt, {0, 0, axis, group_size, false, learned}), levels, {}};
  check_tensor(where, levels, ScalarType::Char);
  const int64_t blocks = x.size(0) / 64 + (x.size(0) % 64 != 0);
  const bool rank = levels.dim() == 1 || levels.dim() == 2;
  const int64_t tables = rank && levels.dim() == 2 ? levels.size(0) : 1;
  const int64_t count = rank ? levels.size(levels.dim() - 1) : 0;
  if (count < 2 || count > 256 || (tables != 1 && tables != blocks)) {
    fail(where, ": expected [levels] or [", blocks, ", levels] with 2..256 levels, got shape ",
         shape_of(levels), ".");
  }
  p.table = as_contiguous(levels);
  const int8_t* data = p.table.const_data_ptr<int8_t>();
  for (int64_t i = 0; i < tables * count; ++i) {
    if (i % count != 0 && data[i] < data[i - 1]) {
      fail(where, ": expected ascending levels, got ", int{data[i - 1]}, " before ", int{data[i]},
           ".");
    }
  }
  FakeSteps& s = p.values.steps;
  p.levels = {data, tables, count, false};
  // Rows of channels even where there is one scale: each may have a table of its own.
  if (group_size == 0 && x.numel() > 0) {
    p.levels.one_scale = !axis.has_value();
    if (tables > 1 || axis.has_value()) {
      const Split split = split_at(x, 0);
      if (split.outer != 1) {
        p.values.source = as_contiguous(x);
      } else {
        p.values.source = split.source;
      }
      s.channels = x.size(0);
      s.inner = product_after(x, 0);
      s.group = s.inner;
    }
    s.outer = 1;
  }
  return p;
}

Tensor fake_quantize_levels_op(const Tensor& x, const Tensor& levels, const Tensor& scale,
                               std::optional<int64_t> axis, int64_t group_size, bool learned) {
  const PreparedLevels p = prepare_levels(x, levels, scale, axis, group_size, learned);
  Tensor y = empty_as(p.values.source);
  if (x.numel() == 0) return y;
  fake_quantize_levels(p.values.type, p.values.source.const_data_ptr(), p.values.steps, p.levels,
                       y.mutable_data_ptr());
  return y;
}

std::tuple<Tensor, Tensor> fake_quantize_levels_backward_op(
    const Tensor& dy, const Tensor& x, const Tensor& levels, const Tensor& scale,
    std::optional<int64_t> axis, int64_t group_size, bool learned, double grad_scale, bool clip) {
  const PreparedLevels p = prepare_levels(x, levels, scale, axis, group_size, learned);
  const Tensor source = in_layout("fake_quantize_levels_backward: dy", dy, p.values.source);
  Tensor dx = clip ? empty_as(p.values.source) : empty({0}, x.scalar_type());
  Tensor to_scale = empty(sizes_of(scale), ScalarType::Float);
  if (x.numel() == 0) {
    fill_zero(&to_scale);
    return {dx, to_scale};
  }
  fake_quantize_levels_backward(p.values.type, source.const_data_ptr(),
                                p.values.source.const_data_ptr(), p.values.steps, p.levels,
                                grad_scale, clip ? dx.mutable_data_ptr() : nullptr,
                                to_scale.mutable_data_ptr<float>());
  return {dx, to_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize_op));
  m.impl("fake_quantize_watched", TORCH_BOX(&fake_quantize_watched_op));
  m.impl("fake_quantize_masked", TORCH_BOX(&fake_quantize_masked_op));
  m.impl("fake_quantize_backward", TORCH_BOX(&fake_quantize_backward_op));
  m.impl("fake_quantize_learned_backward", TORCH_BOX(&fake_quantize_learned_backward_op));
  m.impl("fake_quantize_codes", TORCH_BOX(&fake_quantize_codes_op));
  m.impl("fake_quantize_values", TORCH_BOX(&fake_quantize_values_op));
  m.impl("fake_quantize_clipped", TORCH_BOX(&fake_quantize_clipped_op));
  m.impl("fake_quantize_clipped_backward", TORCH_BOX(&fake_quantize_clipped_backward_op));
  m.impl("fake_quantize_levels", TORCH_BOX(&fake_quantize_levels_op));
  m.impl("fake_quantize_levels_backward", TORCH_BOX(&fake_quantize_levels_backward_op));
}

}  // namespace octavo

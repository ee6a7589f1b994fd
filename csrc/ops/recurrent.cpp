// Operators recurrent (all time steps of one layer in one direction) and recurrent_cell (one time
// step, given its products). Check, allocate, call kernels/recurrent.cpp.
#include <algorithm>
#include <optional>

#include "checks.h"
#include "kernels.h"

namespace octavo {
namespace {

/// The largest width: sizes of all gates stay far below 2^63.
constexpr int64_t kWidest = int64_t{1} << 40;

RecurrentMode mode_of(const char* where, const std::string& mode) {
  if (mode == "LSTM") return RecurrentMode::kLstm;
  if (mode == "GRU") return RecurrentMode::kGru;
  if (mode == "RNN_TANH") return RecurrentMode::kTanh;
  if (mode == "RNN_RELU") return RecurrentMode::kRelu;
  fail(where, ": mode: expected 'LSTM', 'GRU', 'RNN_TANH' or 'RNN_RELU', got '", mode, "'.");
}

/// A contiguous float32 tensor of the shape.
Tensor checked(const char* where, const Tensor& t, std::initializer_list<int64_t> shape) {
  check_tensor(where, t, ScalarType::Float);
  check_shape(where, t, shape);
  return as_contiguous(t);
}

Tensor copy_of(const Tensor& t) {
  Tensor copy = empty(sizes_of(t), ScalarType::Float);
  std::copy_n(t.const_data_ptr<float>(), t.numel(), copy.mutable_data_ptr<float>());
  return copy;
}

void check_features(int64_t out, int64_t in, int64_t count, int64_t width) {
  if (out != count || in != width) {
    fail("recurrent: weight: expected [", count, ", ", width, "], got [", out, ", ", in, "].");
  }
}

std::tuple<Tensor, Tensor, Tensor> recurrent_op(const Tensor& gates, const Tensor& weight,
                                                const Tensor& h, const std::optional<Tensor>& c,
                                                std::vector<int64_t> batch_sizes, bool reverse,
                                                std::string mode, std::string activations,
                                                double scale, int64_t zero_point, int64_t max_code,
                                                bool packed) {
  Recurrence r{};
  r.mode = mode_of("recurrent", mode);
  r.reverse = reverse;
  r.times = static_cast<int64_t>(batch_sizes.size());
  r.batch_sizes = batch_sizes.data();
  check_tensor("recurrent: gates", gates, ScalarType::Float);
  check_tensor("recurrent: h", h, ScalarType::Float);
  if (gates.dim() != 2 || h.dim() != 2) {
    fail("recurrent: expected gates [rows, gates * width] and h [sequences, width], got ",
         shape_of(gates), " and ", shape_of(h), ".");
  }
  if (r.times == 0 || batch_sizes[0] != h.size(0)) {
    fail("recurrent: batch_sizes: expected the first to be ", h.size(0), ", as many as h has, got ",
         text_of(batch_sizes.data(), r.times), ".");
  }
  int64_t rows = 0, before = batch_sizes[0];
  for (const int64_t size : batch_sizes) {
    if (size < 0 || size > before || size > gates.size(0) - rows) {
      fail("recurrent: batch_sizes: expected sizes that never grow, of ", gates.size(0),
           " rows in all, got ", text_of(batch_sizes.data(), r.times), ".");
    }
    rows += before = size;
  }
  r.width = h.size(1);
  check_range("recurrent: width", r.width, 0, kWidest);
  const int64_t count = gates_of(r.mode) * r.width;
  const Tensor from_x = checked("recurrent: gates", gates, {rows, count});
  Tensor last_h = copy_of(checked("recurrent: h", h, {batch_sizes[0], r.width}));
  Tensor last_c = empty({0}, ScalarType::Float);
  if (r.mode == RecurrentMode::kLstm) {
    if (!c.has_value()) fail("recurrent: c: expected a tensor for 'LSTM', got None.");
    last_c = copy_of(checked("recurrent: c", *c, {batch_sizes[0], r.width}));
    r.c = last_c.mutable_data_ptr<float>();
  }
  HiddenWeight w{};
  w.packed = packed;
  if (packed) {
    const LowbitHeader& header = checked_lowbit("recurrent: weight", weight, LowbitOrder::kColumns);
    check_features(header.out_features, header.in_features, count, r.width);
    w.weight = &header;
  } else {
    const PanelHeader& header = checked_panel("recurrent: weight", weight, /*any_layout=*/false);
    if (header.kernel_h != 1 || header.kernel_w != 1 || header.groups != 1) {
      fail("recurrent: weight: expected a linear layer's panel, got a convolution's.");
    }
    check_features(header.out_channels, header.in_channels, count, r.width);
    w.weight = &header;
  }
  QuantParams params;
  if (activations == "static") {
    check_range("recurrent: max_code", max_code, 1, 255);
    check_range("recurrent: zero_point", zero_point, 0, max_code);
    params = {checked_scale("recurrent: scale", scale), static_cast<int32_t>(zero_point),
              static_cast<int32_t>(max_code)};
    w.fixed = &params;
  } else if (activations == "float" && packed) {
    w.floats = true;
  } else if (activations != "dynamic") {
    fail(
        "recurrent: activations: expected 'static', 'dynamic' or, of packed weights, 'float', "
        "got '",
        activations, "'.");
  }
  Tensor y = empty({rows, r.width}, ScalarType::Float);
  r.gates = from_x.const_data_ptr<float>();
  r.h = last_h.mutable_data_ptr<float>();
  r.y = y.mutable_data_ptr<float>();
  recurrent(r, w);
  return {y, last_h, last_c};
}

std::tuple<Tensor, Tensor> recurrent_cell_op(const Tensor& x, const Tensor& h, const Tensor& state,
                                             std::string mode) {
  const RecurrentMode m = mode_of("recurrent_cell", mode);
  check_tensor("recurrent_cell: state", state, ScalarType::Float);
  if (state.dim() != 2) {
    fail("recurrent_cell: state: expected [rows, width], got shape ", shape_of(state), ".");
  }
  const int64_t rows = state.size(0), width = state.size(1);
  check_range("recurrent_cell: width", width, 0, kWidest);
  const int64_t count = gates_of(m) * width;
  const Tensor from_x = checked("recurrent_cell: x", x, {rows, count});
  const Tensor from_h = checked("recurrent_cell: h", h, {rows, count});
  const Tensor before = as_contiguous(state);
  Tensor next_h = empty({rows, width}, ScalarType::Float);
  const bool has_c = m == RecurrentMode::kLstm;
  Tensor next_c = has_c ? empty({rows, width}, ScalarType::Float) : empty({0}, ScalarType::Float);
  recurrent_cell(m, rows, width, from_x.const_data_ptr<float>(), from_h.const_data_ptr<float>(),
                 before.const_data_ptr<float>(), next_h.mutable_data_ptr<float>(),
                 has_c ? next_c.mutable_data_ptr<float>() : nullptr);
  return {next_h, next_c};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("recurrent", TORCH_BOX(&recurrent_op));
  m.impl("recurrent_cell", TORCH_BOX(&recurrent_cell_op));
}

}  // namespace octavo

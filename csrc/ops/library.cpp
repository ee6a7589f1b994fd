// The one place where operators are declared: every schema, one a line, as csrc/README.md describes
// them. Also gives the kernels Torch's thread pool when the library is loaded.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "kernels.h"
#include "parallel.h"

namespace octavo {
namespace {

void run_torch(int64_t begin, int64_t end, int64_t grain, RangeFunction body, void* context) {
  torch::stable::parallel_for(begin, end, grain, [body, context](int64_t first, int64_t last) {
    body(context, first, last);
  });
}

int torch_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

const bool pool_installed = [] {
  set_parallel(run_torch, torch_threads);
  return true;
}();

}  // namespace
}  // namespace octavo

STABLE_TORCH_LIBRARY(octavo, m) {
  m.def("quantize(Tensor x, float scale, int zero_point, int max_code) -> Tensor");
  m.def("quantize_per_channel(Tensor x, Tensor scale, int axis, int qmin, int qmax) -> Tensor");
  m.def("dequantize(Tensor q, float scale, int zero_point) -> Tensor");
  m.def("minmax(Tensor x) -> (Tensor, Tensor)");
  m.def("minmax_per_channel(Tensor x, int axis) -> (Tensor, Tensor)");
  m.def("histogram(Tensor x, int exponent, int first, int bins) -> Tensor");
  m.def(
      "clip_error(Tensor x, Tensor scale, Tensor unit, Tensor ends, Tensor? importance) -> Tensor");
  m.def("pack_bits(Tensor codes, int bits) -> Tensor");
  m.def("unpack_bits(Tensor packed, int[] shape, int bits) -> Tensor");
  m.def("pack_weight(Tensor codes, Tensor scale, Tensor? bias, int groups, int bits) -> Tensor");
  m.def("unpack_weight(Tensor panel, int[] shape) -> Tensor");
  m.def("linear_dynamic(Tensor x, Tensor panel, int out_features) -> Tensor");
  m.def(
      "pack_lowbit(Tensor codes, Tensor scale, Tensor? zero_point, Tensor? levels, Tensor? bias, "
      "int bits, int group_size, bool rows) -> Tensor");
  m.def(
      "unpack_lowbit(Tensor packed, int out_features, int in_features) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def("dequantize_lowbit(Tensor packed, int out_features, int in_features) -> Tensor");
  m.def("linear_lowbit(Tensor x, Tensor packed, int out_features, str activations) -> Tensor");
  m.def(
      "linear_lowbit_static(Tensor x, Tensor packed, int out_features, float scale, int "
      "zero_point, "
      "int max_code) -> Tensor");
  m.def(
      "recurrent(Tensor gates, Tensor weight, Tensor h, Tensor? c, int[] batch_sizes, bool "
      "reverse, str mode, str activations, float scale, int zero_point, int max_code, bool packed) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("recurrent_cell(Tensor x, Tensor h, Tensor state, str mode) -> (Tensor, Tensor)");
  m.def("embedding_lowbit(Tensor indices, Tensor packed, int features) -> Tensor");
  m.def(
      "fake_quantize(Tensor x, Tensor scale, Tensor? zero_point, int qmin, int qmax, int? axis, "
      "int "
      "group_size, bool relu, bool learned) -> Tensor");
  m.def(
      "fake_quantize_masked(Tensor x, Tensor scale, Tensor? zero_point, int qmin, int qmax, int? "
      "axis, int group_size, bool relu) -> (Tensor, Tensor)");
  m.def(
      "fake_quantize_watched(Tensor x, Tensor scale, Tensor? zero_point, int qmin, int qmax, bool "
      "relu) -> (Tensor, Tensor)");
  m.def("fake_quantize_backward(Tensor dy, Tensor mask, int[] strides) -> Tensor");
  m.def(
      "fake_quantize_learned_backward(Tensor dy, Tensor x, Tensor scale, Tensor? zero_point, int "
      "qmin, int qmax, int? axis, int group_size, bool relu, float grad_scale) -> (Tensor, Tensor, "
      "Tensor)");
  m.def(
      "fake_quantize_codes(Tensor y, Tensor scale, Tensor? zero_point, int qmin, int qmax, int? "
      "axis, int group_size, bool learned) -> (Tensor, Tensor)");
  m.def(
      "fake_quantize_values(Tensor codes, Tensor scale, Tensor? zero_point, int qmin, int qmax, "
      "int? axis, int group_size, bool learned) -> Tensor");
  m.def("fake_quantize_clipped(Tensor x, Tensor alpha, int bits) -> Tensor");
  m.def("fake_quantize_clipped_backward(Tensor dy, Tensor x, Tensor alpha) -> (Tensor, Tensor)");
  m.def(
      "fake_quantize_levels(Tensor x, Tensor levels, Tensor scale, int? axis, int group_size, bool "
      "learned) -> Tensor");
  m.def(
      "fake_quantize_levels_backward(Tensor dy, Tensor x, Tensor levels, Tensor scale, int? axis, "
      "int group_size, bool learned, float grad_scale, bool clip) -> (Tensor, Tensor)");
  m.def(
      "observe_fake_quantize(Tensor x, Tensor(a!) state, int qmin, int qmax, float momentum, int? "
      "axis, bool symmetric, bool mse, bool update, bool relu) -> (Tensor, Tensor, Tensor, "
      "Tensor)");
  m.def(
      "observe_fake_quantize_masked(Tensor x, Tensor(a!) state, int qmin, int qmax, float "
      "momentum, int? axis, bool symmetric, bool mse, bool update, bool relu) -> (Tensor, Tensor, "
      "Tensor, Tensor, Tensor)");
  m.def("region_constants(Tensor[] panels, str program) -> Tensor");
  m.def("run_region(Tensor[] tensors, int input_count, Tensor constants, str program) -> Tensor[]");
}

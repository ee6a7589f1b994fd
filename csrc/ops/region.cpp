// Operators of regions: region_constants and run_region. Reads tensors into plain views, allocates
// results, calls kernels/region/call.h, which checks programs, panels and constants.
#include <span>
#include <string>
#include <utility>

#include "checks.h"
#include "region/call.h"

namespace octavo {
namespace {

/// Panels as plain views. `kept` holds contiguous copies alive.
std::vector<RegionPanel> read_panels(std::span<const Tensor> panels, std::vector<Tensor>* kept) {
  std::vector<RegionPanel> views;
  views.reserve(panels.size());
  for (const Tensor& panel : panels) {
    if (!panel.defined()) fail("region: panels: expected tensors, got an undefined one.");
    RegionPanel view;
    const ScalarType type = panel.scalar_type();
    view.type = type == ScalarType::Byte    ? RegionPanel::Type::kBytes
                : type == ScalarType::Float ? RegionPanel::Type::kFloats
                                            : RegionPanel::Type::kInts;
    if (type != ScalarType::Byte && type != ScalarType::Float) {
      check_tensor("region: panels", panel, ScalarType::Int);
    } else {
      check_tensor("region: panels", panel, type);
    }
    const Tensor source = as_contiguous(panel);
    if (source.get() != panel.get()) kept->push_back(source);
    view.data = source.const_data_ptr();
    view.count = source.numel();
    views.push_back(view);
  }
  return views;
}

RegionInput read_input(const Tensor& x) {
  check_tensor("run_region: inputs", x, ScalarType::Float);
  RegionInput input;
  input.data = static_cast<const float*>(x.const_data_ptr());
  const int64_t dim = x.dim();
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  input.sizes.assign(sizes.data(), sizes.data() + dim);
  input.strides.assign(strides.data(), strides.data() + dim);
  return input;
}

/// torch's own rule: channels last, and not contiguous at the same time.
bool is_channels_last(const RegionInput& input) {
  if (input.sizes.size() != 4) return false;
  const auto follows = [&](std::initializer_list<size_t> order) {
    int64_t expected = 1;
    for (const size_t d : order) {
      if (input.sizes[d] == 0) return true;
      if (input.sizes[d] == 1) continue;
      if (input.strides[d] != expected) return false;
      expected = product(expected, input.sizes[d]);
    }
    return true;
  };
  return follows({1, 3, 2, 0}) && !follows({3, 2, 1, 0});
}

Tensor region_constants_op(std::vector<Tensor> panels, std::string program) {
  std::vector<Tensor> kept;
  const std::vector<RegionPanel> views = read_panels(panels, &kept);
  Tensor constants = empty({region_constants_bytes(program, views)}, ScalarType::Byte);
  make_region_constants(program, views, constants.mutable_data_ptr());
  return constants;
}

/// Inputs and panels come in one list, `tensors`. A list of panels alone would become a constant in
/// a traced graph, and torch empties the lists that it passes to an operator: the next call would
/// find an empty constant.
std::vector<Tensor> run_region_op(std::vector<Tensor> tensors, int64_t input_count,
                                  Tensor constants, std::string program) {
  check_range("run_region: input_count", input_count, 0, static_cast<int64_t>(tensors.size()));
  const auto inputs = std::span<const Tensor>(tensors).first(static_cast<size_t>(input_count));
  const auto panels = std::span<const Tensor>(tensors).subspan(static_cast<size_t>(input_count));
  std::vector<Tensor> kept;
  const std::vector<RegionPanel> panel_views = read_panels(panels, &kept);
  check_tensor("run_region: constants", constants, ScalarType::Byte);
  if (!constants.is_contiguous()) fail("run_region: constants: expected them contiguous.");

  std::vector<RegionInput> input_views;
  input_views.reserve(inputs.size());
  for (const Tensor& x : inputs) {
    input_views.push_back(read_input(x));
    // Rows need one pitch; images may have any strides. Only the program says which of the two an
    // input is, so every input that could be rows is given one pitch, except that images in
    // channels_last order are read as they are.
    const std::string as_rows = "in=" + std::to_string(input_views.size() - 1) + " layout=rows";
    if (!rows_have_one_pitch(input_views.back()) &&
        (!is_channels_last(input_views.back()) || program.find(as_rows) != std::string::npos)) {
      kept.push_back(as_contiguous(x));
      input_views.back() = read_input(kept.back());
    }
  }
  const bool channels_last = !inputs.empty() && is_channels_last(read_input(inputs[0]));
  const RegionCall call(program, input_views, panel_views, constants.const_data_ptr(),
                        constants.numel());

  std::vector<Tensor> results;
  std::vector<RegionOutput> outputs;
  results.reserve(call.output_count());
  outputs.reserve(call.output_count());
  bool all_empty = true;
  for (size_t i = 0; i < call.output_count(); ++i) {
    const std::vector<int64_t> sizes = call.output_sizes(i);
    RegionOutput output;
    output.strides = contiguous_strides(sizes);
    if (channels_last && call.output_is_image(i)) {
      const int64_t c = sizes[1], h = sizes[2], w = sizes[3];
      output.strides = {product(product(h, w), c), 1, product(w, c), c};
    }
    Tensor result = empty_strided(sizes.data(), output.strides.data(),
                                  static_cast<int64_t>(sizes.size()), ScalarType::Float);
    output.data = result.mutable_data_ptr<float>();
    all_empty = all_empty && result.numel() == 0;
    results.push_back(std::move(result));
    outputs.push_back(std::move(output));
  }
  if (!all_empty) call.run(outputs);
  return results;
}

}  // namespace

// No tensor may be given at all (a program without panels), so that no dispatch key says CPU.
STABLE_TORCH_LIBRARY_IMPL(octavo, CompositeExplicitAutograd, m) {
  m.impl("region_constants", TORCH_BOX(&region_constants_op));
}

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) { m.impl("run_region", TORCH_BOX(&run_region_op)); }

}  // namespace octavo

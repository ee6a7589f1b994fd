// Shape inference of region programs: each row says what its value's sizes are. Called by arena.cpp
// and, through ops/exports.cpp, by Python's fake kernel.
#include "region/shapes.h"

#include <algorithm>

#include "region/step_row.h"

namespace octavo {
namespace {

/// Most elements of one value.
constexpr int64_t kMaxElements = int64_t{1} << 48;

}  // namespace

std::string text_of(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  }
  return text + "]";
}

std::string text_of(const Shape& shape) { return text_of(shape.logical()); }

std::vector<int64_t> Shape::logical() const {
  if (layout == ValueLayout::kRows) {
    std::vector<int64_t> sizes = lead;
    sizes.push_back(c);
    return sizes;
  }
  if (layout == ValueLayout::kImage1d) return {n, c, w};
  return {n, c, h, w};
}

void ShapeStep::check_size(const Shape& shape) const {
  if (shape.layout == ValueLayout::kImage1d && shape.h != 1) {
    fail("[N, C, L] to keep its height of 1", std::to_string(shape.h));
  }
  // Zero sizes count as one: the product of the others must not overflow either.
  int64_t count = 1;
  for (const int64_t size : shape.logical()) {
    if (size < 0 || size > kMaxSize ||
        __builtin_mul_overflow(count, std::max<int64_t>(size, 1), &count) || count > kMaxElements) {
      fail("a value of at most 2^48 elements", text_of(shape));
    }
  }
}

Shape ShapeStep::rows(std::vector<int64_t> lead, int64_t channels) const {
  Shape shape;
  shape.layout = ValueLayout::kRows;
  shape.lead = std::move(lead);
  shape.c = channels;
  for (const int64_t size : shape.lead) {
    if (__builtin_mul_overflow(shape.w, size, &shape.w)) {
      fail("fewer than 2^63 rows", text_of(shape));
    }
  }
  return shape;
}

std::vector<Shape> infer_shapes(const Program& program,
                                const std::vector<std::vector<int64_t>>& inputs,
                                const std::vector<int64_t>& panel_counts) {
  if (static_cast<int>(inputs.size()) != program.input_count) {
    throw RegionError("region: expected " + std::to_string(program.input_count) + " inputs, got " +
                      std::to_string(inputs.size()) + ".");
  }
  if (static_cast<int>(panel_counts.size()) != program.panel_count) {
    throw RegionError("region: expected " + std::to_string(program.panel_count) + " panels, got " +
                      std::to_string(panel_counts.size()) + ".");
  }
  std::vector<Shape> shapes;
  shapes.reserve(program.steps.size());
  for (size_t i = 0; i < program.steps.size(); ++i) {
    const ShapeStep step(program, i, shapes, inputs, panel_counts);
    const StepRow& row = *program.steps[i].row;
    shapes.push_back(row.shape == nullptr ? step.x() : row.shape(step));
    step.check_size(shapes.back());
  }
  return shapes;
}

std::vector<std::vector<int64_t>> region_output_shapes(
    std::string_view text, const std::vector<std::vector<int64_t>>& inputs,
    const std::vector<int64_t>& panel_counts) {
  const auto program = parse_program(text);
  const std::vector<Shape> shapes = infer_shapes(*program, inputs, panel_counts);
  std::vector<std::vector<int64_t>> results;
  for (const int id : program->outputs)
    results.push_back(shapes[static_cast<size_t>(id)].logical());
  return results;
}

}  // namespace octavo

// What quantize and quantize_dynamic share: sizes of a float input.
#pragma once

#include "region/step_row.h"

namespace octavo {

inline Shape input_shape(const ShapeStep& s) {
  const std::vector<int64_t>& sizes = s.input();
  const size_t rank = sizes.size();
  for (const int64_t size : sizes) {
    if (size < 0 || size > kMaxSize) s.fail("input sizes in 0..2^40", text_of(sizes));
  }
  if (s.step().layout == ValueLayout::kRows) {
    if (rank < 1) s.fail("an input with at least one dimension", "[]");
    return s.rows({sizes.begin(), sizes.end() - 1}, sizes.back());
  }
  const size_t wanted = s.step().layout == ValueLayout::kImage ? 4 : 3;
  if (rank != wanted) {
    s.fail("an input of " + std::to_string(wanted) + " dimensions", text_of(sizes));
  }
  Shape shape;
  shape.layout = s.step().layout;
  shape.n = sizes[0], shape.c = sizes[1], shape.w = sizes[rank - 1];
  shape.h = wanted == 4 ? sizes[2] : 1;
  return shape;
}

}  // namespace octavo

// Sizes of every value of a region program, from the sizes of its inputs. Pure arithmetic, checked
// for overflow: used by arena.cpp, and by Python's fake kernel for run_region.
#pragma once

#include <cstdint>
#include <vector>

#include "region/program.h"

namespace octavo {

/// Sizes of one value. Images: n, c, h, w (h = 1 for [N, C, L]). Rows: leading sizes, and n = h =
/// 1, w = their product.
struct Shape {
  ValueLayout layout = ValueLayout::kImage;
  int64_t n = 1, h = 1, w = 1, c = 0;
  std::vector<int64_t> lead;

  /// The sizes as a tensor has them.
  std::vector<int64_t> logical() const;
  bool operator==(const Shape&) const = default;
};

/// Shape of every value. inputs: sizes of each input tensor; panel_counts: elements of each panel
/// (only those of gather_channels matter). Throws RegionError where a step does not fit its
/// operands.
std::vector<Shape> infer_shapes(const Program& program,
                                const std::vector<std::vector<int64_t>>& inputs,
                                const std::vector<int64_t>& panel_counts);

/// The same for a program text: shapes of the results.
std::vector<std::vector<int64_t>> region_output_shapes(
    std::string_view text, const std::vector<std::vector<int64_t>>& inputs,
    const std::vector<int64_t>& panel_counts);

/// Throws RegionError "region step <index> (<kind>): expected <expected>, got <got>."
[[noreturn]] void fail_step(const Program& program, size_t index, const std::string& expected,
                            const std::string& got);

}  // namespace octavo

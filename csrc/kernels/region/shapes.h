// Sizes of every value of a region program, from the sizes of its inputs. Pure arithmetic, checked
// for overflow: used by arena.cpp, and by Python's fake kernel for run_region.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
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

/// Sizes in brackets, for messages.
std::string text_of(const std::vector<int64_t>& sizes);
std::string text_of(const Shape& shape);

/// A step with the shapes of all values before its own.
class ShapeStep : public ProgramStep {
 public:
  ShapeStep(const Program& program, size_t index, const std::vector<Shape>& shapes,
            const std::vector<std::vector<int64_t>>& inputs,
            const std::vector<int64_t>& panel_counts)
      : ProgramStep(program, index),
        shapes_(shapes),
        inputs_(inputs),
        panel_counts_(panel_counts) {}

  const Shape& value(int id) const { return shapes_[static_cast<size_t>(id)]; }
  const Shape& x() const { return value(step().x[0]); }
  const std::vector<int64_t>& input() const { return inputs_[static_cast<size_t>(step().input)]; }
  int64_t panel_count() const { return panel_counts_[static_cast<size_t>(step().panel)]; }

  /// Throws where a value is too large, or not of its layout.
  void check_size(const Shape& shape) const;
  /// Rows [lead.., channels].
  Shape rows(std::vector<int64_t> lead, int64_t channels) const;

 private:
  const std::vector<Shape>& shapes_;
  const std::vector<std::vector<int64_t>>& inputs_;
  const std::vector<int64_t>& panel_counts_;
};

/// Largest size of one dimension: sums and products with the program's own numbers (at most 2^31)
/// stay in int64.
inline constexpr int64_t kMaxSize = int64_t{1} << 40;

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

}  // namespace octavo

// Where every value of a region lies in memory: halo, aliases, offsets in one arena. An arena holds
// for one set of input sizes ("units": images or rows processed together) and any smaller number of
// units.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "region/program.h"
#include "region/shapes.h"

namespace octavo {

/// A value in the arena. Float values have no place: they are written to the results directly.
struct Placed {
  Shape shape;
  Image view;              // data is null
  int64_t offset = 0;      // of view.data, bytes from the arena's start
  int64_t per_unit = 1;    // of view.n (images) or view.w (rows)
  int root = -1;           // the value whose memory this one lies in; itself where it owns some
  bool owns_halo = false;  // fill_halo after this step
};

/// Numbers of one step that follow from program and sizes alone.
struct Derived {
  float m = 0.0f, m2 = 0.0f,
        offset = 0.0f;  // of add, mul and average pooling; m: a product's residual scale
  uint8_t code = 0;     // pad: the constant
  std::vector<int64_t> row_index, column_index;  // upsampling: source of each row and column
};

struct Arena {
  std::shared_ptr<const Program> program;
  int64_t units = 1;
  bool splits = false;  // all values scale with units, so that any number up to `units` can run
  std::vector<Placed> values;             // of each step
  std::vector<Derived> derived;           // of each step
  std::vector<int64_t> constant_offsets;  // of each step in the constants, -1 without
  int64_t constants_bytes = 0;
  int64_t bytes = 0;
  int64_t largest_unit_bytes = 1;  // of one value, for one unit

  /// Whether value `part` of a concat lies inside the concat's result: its producer has written it
  /// there.
  bool in_place(int part, int whole) const {
    return values[static_cast<size_t>(part)].root == values[static_cast<size_t>(whole)].root;
  }
};

/// Plans for inputs of these sizes. gathers: for each step the first source channel if it is a
/// gather_channels of a contiguous range, else -1.
Arena make_arena(std::shared_ptr<const Program> program,
                 const std::vector<std::vector<int64_t>>& inputs,
                 const std::vector<int64_t>& panel_counts, const std::vector<int64_t>& gathers,
                 int64_t units, bool splits);

/// Offset of each step's numbers in the constants of a region, -1 without; the total is put into
/// *bytes. channels: of each step's value.
std::vector<int64_t> lay_out_constants(const Program& program, const std::vector<int64_t>& channels,
                                       int64_t* bytes);

/// Start of the constants: what they belong to.
struct ConstantsHeader {
  uint64_t magic, program_hash;
  int64_t total_bytes;
};
inline constexpr uint64_t kConstantsMagic = 0x31544e4f4356544f;  // "OTVCONT1"

}  // namespace octavo

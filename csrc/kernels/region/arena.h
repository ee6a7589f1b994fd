// Where every value of a region lies in memory: halo, aliases, offsets in one arena. An arena holds
// for one set of input sizes ("units": images or rows processed together) and any smaller number of
// units.
#pragma once

#include <algorithm>
#include <any>
#include <cstdint>
#include <memory>
#include <vector>

#include "region/program.h"
#include "region/shapes.h"

namespace octavo {

/// Round, once, a factor that codes or sums of their products are multiplied by to get codes, and
/// an offset of such codes. Values with the smallest scale lead to numbers beyond these bounds;
/// there, whatever is not 0 becomes the smallest or the largest code all the same. Within the
/// bounds no sum is infinite, so that no NaN can arise.
inline float code_factor(double m) { return static_cast<float>(std::clamp(m, -0x1p90, 0x1p90)); }
inline float code_offset(double a) { return static_cast<float>(std::clamp(a, -0x1p120, 0x1p120)); }

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
        offset = 0.0f;  // factors and offset of add, mul, products and averages
  std::any own;         // what only this kind derives: a struct of its file

  template <class Numbers>
  const Numbers& own_numbers() const {
    return *std::any_cast<Numbers>(&own);
  }
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

/// An arena for inputs of these sizes. panel_facts: of each step (panels.h).
Arena make_arena(std::shared_ptr<const Program> program,
                 const std::vector<std::vector<int64_t>>& inputs,
                 const std::vector<int64_t>& panel_counts, const std::vector<int64_t>& panel_facts,
                 int64_t units, bool splits);

}  // namespace octavo

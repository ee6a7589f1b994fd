// One run of a region's steps over some of its units, in one thread's memory. Used by call.cpp;
// rows see it one step at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "region/arena.h"
#include "region/call.h"
#include "region/program.h"

namespace octavo {

/// What the caller passes to one call.
struct RunArguments {
  const std::vector<RegionInput>& inputs;
  const std::vector<RegionPanel>& panels;
  const char* constants;
  const std::vector<RegionOutput>& outputs;
};

class Run {
 public:
  /// base: memory of the arena. Units first .. first + units - 1 of the call.
  Run(const Arena& arena, const RunArguments& arguments, uint8_t* base, int64_t first,
      int64_t units)
      : arena_(arena), arguments_(arguments), base_(base), first_(first), units_(units) {}

  void run();

 private:
  friend class RunStep;

  const Placed& placed(size_t i) const { return arena_.values[i]; }
  /// Units of a value that this run holds.
  int64_t extent(const Placed& v) const { return arena_.splits ? v.per_unit * units_ : v.per_unit; }
  Image image(size_t i) const;
  FloatImage floats(size_t i, float* data, const std::vector<int64_t>& strides,
                    int64_t rows_stride) const;
  void write_outputs(size_t i);
  void write_output(size_t i, const RegionOutput& output);

  const Arena& arena_;
  const RunArguments arguments_;
  uint8_t* base_;
  int64_t first_, units_;
  std::vector<std::vector<QuantParams>> dynamic_;  // of each quantize_dynamic step, a sample each
};

/// A step while it runs.
class RunStep : public ProgramStep {
 public:
  RunStep(Run* run, size_t index) : ProgramStep(*run->arena_.program, index), run_(*run) {}

  const Derived& derived() const { return run_.arena_.derived[index()]; }

  /// The value that the step defines.
  Image out() const { return run_.image(index()); }
  bool owns_halo() const { return run_.placed(index()).owns_halo; }
  Image value(int id) const { return run_.image(static_cast<size_t>(id)); }
  Image x() const { return value(step().x[0]); }
  const QuantParams& x_params() const { return params(step().x[0]); }

  /// Whether value `id` lies in the memory of the value defined: its codes are there already.
  bool is_inside(int id) const { return run_.arena_.in_place(id, static_cast<int>(index())); }
  /// Rows [N * H * W, C] seen as the image that they come from or become.
  Image rows_as(int rows, int image) const;

  FloatImage input() const;
  template <class T>
  const T* panel() const {
    return static_cast<const T*>(run_.arguments_.panels[static_cast<size_t>(step().panel)].data);
  }
  /// The step's constants, and arrays of four bytes a channel among them.
  const char* constants() const {
    return run_.arguments_.constants + run_.arena_.constant_offsets[index()];
  }
  template <class T>
  const T* channel_array(int64_t array) const {
    return reinterpret_cast<const T*>(constants() +
                                      array * channel_array_bytes(run_.placed(index()).shape.c));
  }

  /// Parameters of each sample, of a value with dynamic codes.
  std::vector<QuantParams>& dynamic_params(int id) const;

 private:
  Run& run_;
};

}  // namespace octavo

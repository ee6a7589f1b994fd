// Runs region programs (csrc/README.md): a stretch of a network in u8, one call. Used by
// ops/region.cpp and by tests. Calls the drivers of kernels.h. Everything that a caller can get
// wrong ends in a RegionError before any work.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "region/arena.h"
#include "region/constants.h"
#include "region/panels.h"
#include "region/program.h"

namespace octavo {

/// A float input: sizes and strides (elements) of a tensor.
struct RegionInput {
  const float* data = nullptr;
  std::vector<int64_t> sizes, strides;
};

/// Where a result goes: its logical sizes are those of RegionCall::output_sizes.
struct RegionOutput {
  float* data = nullptr;
  std::vector<int64_t> strides;
};

/// Stride between rows of an input read as [rows, C]; false where there is no single one.
bool row_stride(const RegionInput& input, int64_t* stride);

/// Whether an input that steps read as rows has rows of one pitch; a caller makes it contiguous
/// otherwise.
bool rows_have_one_pitch(const RegionInput& input);

/// One call. Construction checks everything; run computes.
class RegionCall {
 public:
  RegionCall(std::string_view text, const std::vector<RegionInput>& inputs,
             const std::vector<RegionPanel>& panels, const void* constants,
             int64_t constants_bytes);

  size_t output_count() const;
  std::vector<int64_t> output_sizes(size_t i) const;
  bool output_is_image(size_t i) const;

  /// Outputs overlap neither each other nor inputs.
  void run(const std::vector<RegionOutput>& outputs) const;

 private:
  const std::vector<RegionInput>& inputs_;
  const std::vector<RegionPanel>& panels_;
  const char* constants_;
  std::shared_ptr<const Program> program_;
  std::shared_ptr<const std::vector<Shape>> shapes_;  // of the whole call
  std::shared_ptr<const Arena> arena_;                // of one chunk
  int64_t units_ = 0;                                 // of the whole call
  int64_t parallel_units_ =
      0;  // the first ones are spread over threads; for the others drivers use the threads
};

}  // namespace octavo

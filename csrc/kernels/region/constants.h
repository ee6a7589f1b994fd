// Derived numbers of region programs that depend on panels: what csrc/README.md's table asks for,
// formed in double and rounded once. Used by arena.cpp (where they lie) and by ops/region.cpp.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "region/panels.h"
#include "region/program.h"

namespace octavo {

/// Start of the constants: what they belong to.
struct ConstantsHeader {
  uint64_t magic, program_hash;
  int64_t total_bytes;
};
inline constexpr uint64_t kConstantsMagic = 0x31544e4f4356544f;  // "OTVCONT1"

/// Bytes up to the next multiple of 64.
constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
/// Bytes of an array with four bytes a channel; a step's arrays follow one another.
constexpr int64_t channel_array_bytes(int64_t channels) { return aligned(4 * channels); }

/// A step that has constants, while they are made.
class ConstantsStep : public PanelStep {
 public:
  using PanelStep::PanelStep;

  /// The one rounding of a derived number: of one that leads to floats, and of a factor or an
  /// offset that leads to codes (arena.h).
  float rounded(double number) const;
  float rounded_factor(double number) const;
  float rounded_offset(double number) const;

 private:
  void check_finite(double number) const;
};

/// Offset of each step's numbers in the constants of a region, -1 without; the total is put into
/// *bytes. channels: of each step's value.
std::vector<int64_t> lay_out_constants(const Program& program, const std::vector<int64_t>& channels,
                                       int64_t* bytes);

/// Size of the constants of a region, and what they hold (64-byte aligned memory).
int64_t region_constants_bytes(std::string_view text, const std::vector<RegionPanel>& panels);
void make_region_constants(std::string_view text, const std::vector<RegionPanel>& panels,
                           void* constants);

}  // namespace octavo

// Lays out the constants of a region and has each kind of step write its own. Written when a region
// is made (region_constants), never during a run.
#include "region/constants.h"

#include <cmath>
#include <cstring>

#include "region/arena.h"
#include "region/step_row.h"

namespace octavo {
namespace {

/// Channels of every step's value as far as constants need them. Panels bound them, so that offsets
/// cannot overflow.
std::vector<int64_t> constant_channels(const Program& program,
                                       const std::vector<RegionPanel>& panels) {
  check_panel_count(program, panels);
  std::vector<int64_t> channels(program.steps.size(), 0);
  for (size_t i = 0; i < channels.size(); ++i) {
    const StepRow& row = *program.steps[i].row;
    if (row.constant_channels == nullptr) continue;
    channels[i] = row.constant_channels(PanelStep(program, i, panels));
  }
  return channels;
}

}  // namespace

float ConstantsStep::rounded(double number) const {
  check_finite(static_cast<float>(number));
  return static_cast<float>(number);
}

float ConstantsStep::rounded_factor(double number) const {
  check_finite(number);
  return code_factor(number);
}

float ConstantsStep::rounded_offset(double number) const {
  check_finite(number);
  return code_offset(number);
}

void ConstantsStep::check_finite(double number) const {
  if (!std::isfinite(number)) {
    fail("scales whose quotient is a finite float32", std::to_string(number));
  }
}

std::vector<int64_t> lay_out_constants(const Program& program, const std::vector<int64_t>& channels,
                                       int64_t* bytes) {
  std::vector<int64_t> offsets(program.steps.size(), -1);
  *bytes = aligned(sizeof(ConstantsHeader));
  for (size_t i = 0; i < program.steps.size(); ++i) {
    const Step& step = program.steps[i];
    if (step.row->constants_bytes == nullptr) continue;
    const int64_t needed = step.row->constants_bytes(step, channels[i]);
    if (needed == 0) continue;
    offsets[i] = *bytes;
    *bytes += needed;
  }
  return offsets;
}

int64_t region_constants_bytes(std::string_view text, const std::vector<RegionPanel>& panels) {
  const auto program = parse_program(text);
  int64_t total = 0;
  lay_out_constants(*program, constant_channels(*program, panels), &total);
  return total;
}

void make_region_constants(std::string_view text, const std::vector<RegionPanel>& panels,
                           void* constants) {
  const auto program = parse_program(text);
  const std::vector<int64_t> channels = constant_channels(*program, panels);
  int64_t total = 0;
  const std::vector<int64_t> offsets = lay_out_constants(*program, channels, &total);
  auto* bytes = static_cast<char*>(constants);
  std::memset(bytes, 0, static_cast<size_t>(total));
  const ConstantsHeader header{kConstantsMagic, program->hash, total};
  std::memcpy(bytes, &header, sizeof(header));
  for (size_t i = 0; i < offsets.size(); ++i) {
    if (offsets[i] < 0) continue;
    program->steps[i].row->write_constants(ConstantsStep(*program, i, panels), channels[i],
                                           bytes + offsets[i]);
  }
}

}  // namespace octavo

// The rows of all kinds of step (steps.h). Called by program.cpp and by tests.
#include "region/steps.h"

namespace octavo {
namespace {

#define OCTAVO_STEP_ROW(kind) &kind##_step,
constexpr const StepRow* kRows[] = {OCTAVO_REGION_STEPS(OCTAVO_STEP_ROW)};
#undef OCTAVO_STEP_ROW

}  // namespace

std::span<const StepRow* const> step_rows() { return kRows; }

const StepRow* find_step(std::string_view name) {
  for (const StepRow* row : kRows) {
    if (name == row->name) return row;
  }
  return nullptr;
}

}  // namespace octavo

// Panels of a region call, which come from callers, and their checks. Used by call.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "region/program.h"
#include "region/shapes.h"
#include "types.h"

namespace octavo {

/// A panel: packed weights or tables (bytes), or the numbers of affine and gather_channels.
struct RegionPanel {
  enum class Type { kBytes, kFloats, kInts };
  const void* data = nullptr;
  int64_t count = 0;  // elements
  Type type = Type::kBytes;
};

/// A step that has a panel, with the panels of a call.
class PanelStep : public ProgramStep {
 public:
  PanelStep(const Program& program, size_t index, const std::vector<RegionPanel>& panels)
      : ProgramStep(program, index), panels_(panels) {}

  const RegionPanel& panel() const { return panels_[static_cast<size_t>(step().panel)]; }
  /// Refuses another dtype or number of elements.
  void check_elements(RegionPanel::Type type, int64_t count) const;

 private:
  const std::vector<RegionPanel>& panels_;
};

/// Refuses another number of panels than the program names.
void check_panel_count(const Program& program, const std::vector<RegionPanel>& panels);

/// Checks one call's panels against program and shapes; a RegionError says what is wrong. headers:
/// for each step, the last packed weight found sound, which is not checked again.
void check_panels(const Program& program, const std::vector<RegionPanel>& panels,
                  const std::vector<Shape>& shapes, std::vector<PanelHeader>* headers);

/// StepRow::panel_fact of every step, -1 where there is none.
std::vector<int64_t> panel_facts(const Program& program, const std::vector<RegionPanel>& panels);

}  // namespace octavo

// The dtype, size and content of every panel of a region call, as the rows want them. Called by
// call.cpp.
#include "region/panels.h"

#include "region/step_row.h"

namespace octavo {

void PanelStep::check_elements(RegionPanel::Type type, int64_t count) const {
  if (panel().type != type) fail_panel("of another dtype", "this one");
  if (panel().count != count) {
    fail_panel("of " + std::to_string(count) + " elements", std::to_string(panel().count));
  }
}

void check_panel_count(const Program& program, const std::vector<RegionPanel>& panels) {
  if (static_cast<int>(panels.size()) == program.panel_count) return;
  throw RegionError("region: expected " + std::to_string(program.panel_count) + " panels, got " +
                    std::to_string(panels.size()) + ".");
}

void check_panels(const Program& program, const std::vector<RegionPanel>& panels,
                  const std::vector<Shape>& shapes, std::vector<PanelHeader>* headers) {
  for (size_t i = 0; i < program.steps.size(); ++i) {
    const Step& step = program.steps[i];
    if (step.panel < 0) continue;
    step.row->check_panel(PanelStep(program, i, panels), shapes[static_cast<size_t>(step.x[0])].c,
                          &(*headers)[i]);
  }
}

std::vector<int64_t> panel_facts(const Program& program, const std::vector<RegionPanel>& panels) {
  std::vector<int64_t> facts(program.steps.size(), -1);
  for (size_t i = 0; i < facts.size(); ++i) {
    const StepRow& row = *program.steps[i].row;
    if (row.panel_fact != nullptr) facts[i] = row.panel_fact(PanelStep(program, i, panels));
  }
  return facts;
}

}  // namespace octavo

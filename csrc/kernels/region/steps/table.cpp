// Codes to codes by one table: pointwise functions.
#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

void check_panel(const PanelStep& s, int64_t, PanelHeader*) {
  s.check_elements(RegionPanel::Type::kBytes, 256);
}

void run(const RunStep& s) { apply_table(s.x(), s.panel<uint8_t>(), false, s.out()); }

}  // namespace

constinit const StepRow table_step{
    .name = "table", .keys = "x panel s z max", .check_panel = check_panel, .run = run};

}  // namespace octavo

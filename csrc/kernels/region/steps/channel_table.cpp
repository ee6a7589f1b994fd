// Codes to codes by a table for each channel.
#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

void check_panel(const PanelStep& s, int64_t channels, PanelHeader*) {
  s.check_elements(RegionPanel::Type::kBytes, 256 * channels);
}

void run(const RunStep& s) { apply_table(s.x(), s.panel<uint8_t>(), true, s.out()); }

}  // namespace

constinit const StepRow channel_table_step{
    .name = "channel_table", .keys = "x panel s z max", .check_panel = check_panel, .run = run};

}  // namespace octavo

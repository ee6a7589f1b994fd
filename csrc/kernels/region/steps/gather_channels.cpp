// Channels in another order, some perhaps filled with the zero point. A contiguous range is a view.
#include <algorithm>

#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

Shape shape(const ShapeStep& s) {
  Shape shape = s.x();
  shape.c = s.panel_count();
  return shape;
}

/// The first channel of a contiguous range, else -1.
int64_t first_channel(const PanelStep& s) {
  const RegionPanel& panel = s.panel();
  if (panel.type != RegionPanel::Type::kInts) s.fail_panel("int32 [C]", "another dtype");
  const auto* index = static_cast<const int32_t*>(panel.data);
  if (panel.count == 0) return -1;
  for (int64_t c = 1; c < panel.count; ++c) {
    if (index[c] != index[0] + c) return -1;
  }
  return std::max(index[0], -1);
}

void place(Placement* p, int i) {
  if (p->panel_fact(i) >= 0) p->view_channels(i, p->step(i).x[0], p->panel_fact(i));
}

void check_panel(const PanelStep& s, int64_t channels, PanelHeader*) {
  const RegionPanel& panel = s.panel();
  const auto* index = static_cast<const int32_t*>(panel.data);
  for (int64_t c = 0; c < panel.count; ++c) {
    if (index[c] < -1 || index[c] >= channels) {
      s.fail_panel("channels in -1.." + std::to_string(channels - 1), std::to_string(index[c]));
    }
  }
}

void run(const RunStep& s) {
  const Step& step = s.step();
  if (s.is_inside(step.x[0])) return;
  gather_channels(s.x(), s.panel<int32_t>(), static_cast<uint8_t>(step.params.zero_point), s.out());
}

}  // namespace

constinit const StepRow gather_channels_step{.name = "gather_channels",
                                             .keys = "x panel",
                                             .passes_params = true,
                                             .shape = shape,
                                             .place = place,
                                             .check_panel = check_panel,
                                             .panel_fact = first_channel,
                                             .run = run};

}  // namespace octavo

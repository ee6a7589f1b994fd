// The dtype, size and place of every panel of a region call, and packed weights by their headers.
// Called by call.cpp.
#include "region/panels.h"

#include <cstring>

#include "kernels.h"

namespace octavo {

std::vector<int64_t> PanelChecker::gathers() const {
  std::vector<int64_t> first(program_.steps.size(), -1);
  for (size_t i = 0; i < first.size(); ++i) {
    if (program_.steps[i].kind != StepKind::kGatherChannels) continue;
    const RegionPanel& panel = panel_of(i);
    if (panel.type != RegionPanel::Type::kInts) fail(i, "int32 [C]", "another dtype");
    const auto* index = static_cast<const int32_t*>(panel.data);
    bool contiguous = panel.count > 0 && index[0] >= 0;
    for (int64_t c = 1; c < panel.count && contiguous; ++c) contiguous = index[c] == index[0] + c;
    if (contiguous) first[i] = index[0];
  }
  return first;
}

void PanelChecker::check(const std::vector<Shape>& shapes) {
  for (size_t i = 0; i < program_.steps.size(); ++i) {
    const Step& step = program_.steps[i];
    if (step.panel < 0) continue;
    const RegionPanel& panel = panel_of(i);
    const int64_t channels = shapes[static_cast<size_t>(step.x[0])].c;
    switch (step.kind) {
      case StepKind::kAffine:
        check_table(i, panel, RegionPanel::Type::kFloats, 2 * channels);
        break;
      case StepKind::kTable:
        check_table(i, panel, RegionPanel::Type::kBytes, 256);
        break;
      case StepKind::kChannelTable:
        check_table(i, panel, RegionPanel::Type::kBytes, 256 * channels);
        break;
      case StepKind::kGatherChannels:
        check_gather(i, panel, channels);
        break;
      default:
        check_weight(i, panel, channels);
        break;
    }
  }
}

void PanelChecker::fail(size_t i, const std::string& expected, const std::string& got) const {
  fail_step(program_, i, "panel " + std::to_string(program_.steps[i].panel) + " to be " + expected,
            got);
}

const RegionPanel& PanelChecker::panel_of(size_t i) const {
  return panels_[static_cast<size_t>(program_.steps[i].panel)];
}

void PanelChecker::check_table(size_t i, const RegionPanel& panel, RegionPanel::Type type,
                               int64_t count) const {
  if (panel.type != type) fail(i, "of another dtype", "this one");
  if (panel.count != count) {
    fail(i, "of " + std::to_string(count) + " elements", std::to_string(panel.count));
  }
}

void PanelChecker::check_gather(size_t i, const RegionPanel& panel, int64_t channels) const {
  const auto* index = static_cast<const int32_t*>(panel.data);
  for (int64_t c = 0; c < panel.count; ++c) {
    if (index[c] < -1 || index[c] >= channels) {
      fail(i, "channels in -1.." + std::to_string(channels - 1), std::to_string(index[c]));
    }
  }
}

void PanelChecker::check_weight(size_t i, const RegionPanel& panel, int64_t channels) {
  const Step& step = program_.steps[i];
  if (panel.type != RegionPanel::Type::kBytes ||
      panel.count < static_cast<int64_t>(sizeof(PanelHeader)) ||
      reinterpret_cast<uintptr_t>(panel.data) % 64 != 0) {
    fail(i, "a packed weight", std::to_string(panel.count) + " elements that are none");
  }
  const auto& header = *static_cast<const PanelHeader*>(panel.data);
  PanelHeader& known = headers_[i];
  if (std::memcmp(&header, &known, sizeof(header)) != 0 || !panel_is_current(header) ||
      header.total_bytes > panel.count) {
    const PanelCheck result = check_panel(panel.data, panel.count);
    if (result == PanelCheck::kOtherLayout) {
      fail(i, "in the active instruction set's layout", "another layout. Pack the weight again");
    }
    if (result != PanelCheck::kOk) {
      fail(i, "a packed weight", std::to_string(panel.count) + " bytes that are none");
    }
    known = header;
  }
  if (header.out_channels != step.channels || header.in_channels != channels ||
      header.kernel_h != step.geometry.kernel_h || header.kernel_w != step.geometry.kernel_w) {
    const auto text = [](int64_t out, int64_t in, int64_t h, int64_t w) {
      return std::to_string(in) + " to " + std::to_string(out) + " channels, kernel " +
             std::to_string(h) + "x" + std::to_string(w);
    };
    fail(i, text(step.channels, channels, step.geometry.kernel_h, step.geometry.kernel_w),
         text(header.out_channels, header.in_channels, header.kernel_h, header.kernel_w));
  }
}

}  // namespace octavo

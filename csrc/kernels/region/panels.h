// Checks of a region call's panels, which come from callers. Used by call.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "region/call.h"
#include "types.h"

namespace octavo {

/// Checks one call's panels against program and shapes; RegionErrors say what is wrong. Headers
/// seen before are not checked again.
class PanelChecker {
 public:
  PanelChecker(const Program& program, const std::vector<RegionPanel>& panels,
               std::vector<PanelHeader>* headers)
      : program_(program), panels_(panels), headers_(*headers) {}

  /// For every gather_channels the first channel of a contiguous range, else -1; for every other
  /// step -1.
  std::vector<int64_t> gathers() const;

  void check(const std::vector<Shape>& shapes);

 private:
  [[noreturn]] void fail(size_t i, const std::string& expected, const std::string& got) const;
  const RegionPanel& panel_of(size_t i) const;
  void check_table(size_t i, const RegionPanel& panel, RegionPanel::Type type, int64_t count) const;
  void check_gather(size_t i, const RegionPanel& panel, int64_t channels) const;
  void check_weight(size_t i, const RegionPanel& panel, int64_t channels);

  const Program& program_;
  const std::vector<RegionPanel>& panels_;
  std::vector<PanelHeader>& headers_;
};

}  // namespace octavo

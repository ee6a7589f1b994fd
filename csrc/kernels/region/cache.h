// Programs and arenas of regions by content, of the calling thread: what a call has met before is
// neither parsed nor laid out again. Used by call.cpp.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <string_view>
#include <vector>

#include "region/call.h"
#include "types.h"

namespace octavo {

/// What a call's sizes lead to.
struct SizedCall {
  std::vector<int64_t> key;
  std::shared_ptr<const std::vector<Shape>> shapes;
  std::shared_ptr<const Arena> arena;
  int64_t units = 0, parallel_units = 0;
};

/// A parsed program with the arenas for the last sizes it met, and panel headers that were found
/// sound.
struct CachedProgram {
  std::shared_ptr<const Program> program;
  uint64_t sample = 0;         // of the text, see sample_of
  std::list<SizedCall> calls;  // latest first
  std::vector<PanelHeader> headers;
};

/// The calling thread's entry for a program, parsed if it is new; valid until the next call.
CachedProgram& find_program(std::string_view text);

/// The entry for a call of these sizes, made if it is new. panel_facts: of each step.
const SizedCall& find_call(CachedProgram& cached, const std::vector<RegionInput>& inputs,
                           const std::vector<RegionPanel>& panels,
                           std::vector<int64_t> panel_facts);

}  // namespace octavo

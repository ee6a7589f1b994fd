// Parsed programs, and for each the arenas of the last sizes: how a call is cut into chunks, and
// how these are distributed over threads. Called by call.cpp; calls program.h and arena.h.
#include "region/cache.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "kernel_table.h"
#include "parallel.h"
#include "region/step_row.h"

namespace octavo {
namespace {

constexpr size_t kCallsPerProgram = 4;
/// A transformer has a few regions a block; programs are some KiB each.
constexpr size_t kPrograms = 256;

/// A few bytes of the text in one number: tells most programs apart before they are compared in
/// full.
uint64_t sample_of(std::string_view text) {
  uint64_t hash = text.size();
  if (text.size() < 8) return hash;
  for (size_t i = 0; i < 8; ++i) {
    uint64_t word;
    std::memcpy(&word, text.data() + (text.size() - 8) * i / 7, 8);
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

/// Units of work of a call, and how they are distributed.
class CallSizes {
 public:
  CallSizes(std::shared_ptr<const Program> program, const std::vector<RegionInput>& inputs,
            std::vector<int64_t> panel_counts, std::vector<int64_t> panel_facts)
      : program_(std::move(program)),
        panel_counts_(std::move(panel_counts)),
        panel_facts_(std::move(panel_facts)) {
    for (const RegionInput& input : inputs) sizes_.push_back(input.sizes);
  }

  SizedCall make(int threads, int64_t chunk_bytes) {
    SizedCall call;
    call.shapes =
        std::make_shared<const std::vector<Shape>>(infer_shapes(*program_, sizes_, panel_counts_));
    find_units(*call.shapes);
    call.units = units_;
    if (!splits_ || units_ == 0) {
      call.arena = arena(sizes_, 1, false);
      return call;
    }
    const int64_t unit_bytes = arena(sizes_for(1), 1, true)->largest_unit_bytes;
    // Rows read all weights again for every chunk, so chunks of rows are longer.
    const int64_t target = unit_is_row_ ? std::max(chunk_bytes, int64_t{1} << 20) : chunk_bytes;
    int64_t chunk = std::clamp<int64_t>(target / unit_bytes, unit_is_row_ ? 64 : 1, INT64_MAX);
    chunk = std::min(chunk, units_);
    if (threads > 1) {
      // There are fewer units than are worth a thread each: the drivers use the threads, on all
      // units at once.
      const int64_t least = unit_is_row_ ? 64 : 1;
      if (units_ < threads * least) {
        chunk = units_;
      } else {
        // A remainder would keep one thread busy while others wait: the drivers run it on all
        // threads.
        call.parallel_units =
            unit_is_row_ || units_ >= 4 * threads ? units_ : units_ - units_ % threads;
        chunk = std::min(chunk, (call.parallel_units + threads - 1) / threads);
      }
    }
    call.arena = arena(sizes_for(chunk), chunk, true);
    return call;
  }

 private:
  /// A unit is an image, or a row where a region has only rows.
  void find_units(const std::vector<Shape>& shapes) {
    bool only_rows = true, regular = true;
    const Shape* first = nullptr;
    for (const std::vector<int64_t>& sizes : sizes_) {
      regular = regular && sizes.size() >= 2 && sizes[0] == sizes_[0][0];
      only_rows = only_rows && !sizes.empty();
    }
    for (size_t i = 0; i < program_->steps.size(); ++i) {
      only_rows = only_rows && shapes[i].layout == ValueLayout::kRows;
      if (program_->steps[i].input < 0) continue;
      if (first == nullptr) first = &shapes[i];
      only_rows = only_rows && shapes[i].lead == first->lead;
    }
    splits_ = first != nullptr && (only_rows || regular);
    unit_is_row_ = only_rows;
    units_ = !splits_ ? 1 : unit_is_row_ ? first->w : sizes_[0][0];
  }

  std::vector<std::vector<int64_t>> sizes_for(int64_t units) const {
    std::vector<std::vector<int64_t>> sizes = sizes_;
    for (std::vector<int64_t>& s : sizes) {
      if (unit_is_row_) {
        s = {units, s.back()};
      } else {
        s[0] = units;
      }
    }
    return sizes;
  }

  std::shared_ptr<const Arena> arena(const std::vector<std::vector<int64_t>>& sizes, int64_t units,
                                     bool splits) const {
    return std::make_shared<const Arena>(
        make_arena(program_, sizes, panel_counts_, panel_facts_, units, splits));
  }

  std::shared_ptr<const Program> program_;
  std::vector<std::vector<int64_t>> sizes_;
  std::vector<int64_t> panel_counts_, panel_facts_;
  bool splits_ = false, unit_is_row_ = false;
  int64_t units_ = 0;
};

}  // namespace

CachedProgram& find_program(std::string_view text) {
  thread_local std::list<CachedProgram> cache;  // latest first
  const uint64_t sample = sample_of(text);
  for (auto entry = cache.begin(); entry != cache.end(); ++entry) {
    if (entry->sample == sample && entry->program->text == text) {
      cache.splice(cache.begin(), cache, entry);
      return *entry;
    }
  }
  CachedProgram fresh;
  fresh.program = parse_program(text);
  fresh.sample = sample;
  fresh.headers.resize(fresh.program->steps.size());
  cache.push_front(std::move(fresh));
  if (cache.size() > kPrograms) cache.pop_back();
  return cache.front();
}

const SizedCall& find_call(CachedProgram& cached, const std::vector<RegionInput>& inputs,
                           const std::vector<RegionPanel>& panels,
                           std::vector<int64_t> panel_facts) {
  // Everything that an arena depends on.
  const int threads = max_threads();
  const int64_t chunk_bytes = active_table().gemm.chunk_bytes;
  std::vector<int64_t> key{threads, chunk_bytes};
  for (const RegionInput& input : inputs) {
    key.push_back(static_cast<int64_t>(input.sizes.size()));
    key.insert(key.end(), input.sizes.begin(), input.sizes.end());
  }
  for (size_t i = 0; i < panel_facts.size(); ++i) {
    const Step& step = cached.program->steps[i];
    if (step.row->panel_fact == nullptr) continue;
    key.push_back(panels[static_cast<size_t>(step.panel)].count);
    key.push_back(panel_facts[i]);
  }
  auto found = std::find_if(cached.calls.begin(), cached.calls.end(),
                            [&](const SizedCall& p) { return p.key == key; });
  if (found == cached.calls.end()) {
    std::vector<int64_t> counts;
    for (const RegionPanel& panel : panels) counts.push_back(panel.count);
    SizedCall fresh = CallSizes(cached.program, inputs, std::move(counts), std::move(panel_facts))
                          .make(threads, chunk_bytes);
    fresh.key = std::move(key);
    cached.calls.push_front(std::move(fresh));
    if (cached.calls.size() > kCallsPerProgram) cached.calls.pop_back();
  } else {
    cached.calls.splice(cached.calls.begin(), cached.calls, found);
  }
  return cached.calls.front();
}

}  // namespace octavo

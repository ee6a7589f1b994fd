// Calls of regions: a call finds its program and arena (cache.h), checks its panels (panels.h) and
// runs the steps, chunk by chunk (run.h). Called by ops/region.cpp.
#include "region/call.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "parallel.h"
#include "region/cache.h"
#include "region/run.h"

namespace octavo {
namespace {

/// Memory for activations, of one thread: kept, grown when a region needs more.
class ArenaMemory {
 public:
  ArenaMemory() = default;
  ArenaMemory(const ArenaMemory&) = delete;
  ArenaMemory& operator=(const ArenaMemory&) = delete;
  ~ArenaMemory() { release(); }

  /// At least `bytes`, 64-byte aligned, with kSlack readable bytes on both sides.
  uint8_t* reserve(int64_t bytes) {
    if (bytes > size_) {
      release();
      memory_ = static_cast<uint8_t*>(
          ::operator new (static_cast<size_t>(bytes + 2 * kSlack), std::align_val_t{64}));
      std::memset(memory_, 0, kSlack);
      std::memset(memory_ + kSlack + bytes, 0, kSlack);
      size_ = bytes;
    }
    return memory_ + kSlack;
  }

 private:
  void release() {
    if (memory_ != nullptr) ::operator delete (memory_, std::align_val_t{64});
    memory_ = nullptr;
    size_ = -1;
  }

  uint8_t* memory_ = nullptr;
  int64_t size_ = -1;
};

}  // namespace

bool row_stride(const RegionInput& input, int64_t* stride) {
  *stride = input.sizes.empty() ? 0 : input.sizes.back();
  // Of an empty tensor nothing is read, whatever its strides.
  if (std::find(input.sizes.begin(), input.sizes.end(), 0) != input.sizes.end()) return true;
  bool first = true;
  int64_t expected = 0;
  for (size_t d = input.sizes.size() - 1; d-- > 0;) {
    if (input.sizes[d] == 1) continue;
    if (first) {
      *stride = input.strides[d];
    } else if (input.strides[d] != expected) {
      return false;
    }
    first = false;
    expected = input.strides[d] * input.sizes[d];
  }
  return true;
}

bool rows_have_one_pitch(const RegionInput& input) {
  int64_t stride;
  return input.sizes.empty() || row_stride(input, &stride);
}

RegionCall::RegionCall(std::string_view text, const std::vector<RegionInput>& inputs,
                       const std::vector<RegionPanel>& panels, const void* constants,
                       int64_t constants_bytes)
    : inputs_(inputs), panels_(panels), constants_(static_cast<const char*>(constants)) {
  CachedProgram& cached = find_program(text);
  program_ = cached.program;
  check_panel_count(*program_, panels);

  const SizedCall& call = find_call(cached, inputs, panels, panel_facts(*program_, panels));
  shapes_ = call.shapes;
  arena_ = call.arena;
  units_ = call.units;
  parallel_units_ = call.parallel_units;
  check_panels(*program_, panels, *shapes_, &cached.headers);

  for (const Step& step : program_->steps) {
    if (step.input >= 0 && step.layout == ValueLayout::kRows &&
        !rows_have_one_pitch(inputs[static_cast<size_t>(step.input)])) {
      throw RegionError("region: expected input " + std::to_string(step.input) +
                        " with rows of one pitch, got other strides. Use .contiguous().");
    }
  }
  ConstantsHeader header{};
  if (constants_bytes >= static_cast<int64_t>(sizeof(header))) {
    std::memcpy(&header, constants, sizeof(header));
  }
  if (header.magic != kConstantsMagic || header.program_hash != program_->hash ||
      header.total_bytes != constants_bytes || constants_bytes != arena_->constants_bytes ||
      reinterpret_cast<uintptr_t>(constants) % 64 != 0) {
    throw RegionError(
        "region: expected the constants that region_constants made for this program, got others.");
  }
}

size_t RegionCall::output_count() const { return program_->outputs.size(); }

std::vector<int64_t> RegionCall::output_sizes(size_t i) const {
  return (*shapes_)[static_cast<size_t>(program_->outputs[i])].logical();
}

bool RegionCall::output_is_image(size_t i) const {
  return program_->steps[static_cast<size_t>(program_->outputs[i])].layout != ValueLayout::kRows &&
         (*shapes_)[static_cast<size_t>(program_->outputs[i])].layout == ValueLayout::kImage;
}

void RegionCall::run(const std::vector<RegionOutput>& outputs) const {
  if (units_ == 0) return;
  const auto run_range = [&](int64_t begin, int64_t end) {
    thread_local ArenaMemory memory;
    uint8_t* base = memory.reserve(arena_->bytes);
    for (int64_t first = begin; first < end; first += arena_->units) {
      Run(*arena_, {inputs_, panels_, constants_, outputs}, base, first,
          std::min(arena_->units, end - first))
          .run();
    }
  };
  parallel_for(0, parallel_units_, 1, [&](int64_t begin, int64_t end) { run_range(begin, end); });
  if (parallel_units_ < units_) run_range(parallel_units_, units_);
}

}  // namespace octavo

// Memory that a driver keeps between calls: one block a thread and use, which only grows. Included
// by drivers.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "out_of_memory.h"
#include "panel.h"

namespace octavo {

/// Memory of one thread that only grows, 64-byte aligned, with kSlack bytes around it. Empty after
/// an allocation has failed; the next call tries again.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }

  /// Throws OutOfMemory.
  uint8_t* get(int64_t bytes) {
    const int64_t needed = round_up(bytes + 2 * kSlack, 64);
    if (needed > size_) {
      std::free(memory_);
      size_ = 0;
      memory_ = static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(needed)));
      if (memory_ == nullptr) throw OutOfMemory(needed);
      size_ = needed;
    }
    return memory_ + kSlack;
  }

 private:
  uint8_t* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace octavo

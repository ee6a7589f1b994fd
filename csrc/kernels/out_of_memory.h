// The exception thrown when memory runs out: a std::bad_alloc, which Python sees as MemoryError,
// with a text that says more. Included by whatever allocates.
#pragma once

#include <cstdint>
#include <cstdio>
#include <new>

namespace octavo {

class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(int64_t bytes) {
    std::snprintf(text_, sizeof text_,
                  "octavo: expected %lld more bytes of memory, got none. Use a smaller batch, or "
                  "fewer threads.",
                  static_cast<long long>(bytes));
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[128];  // text that allocates nothing
};

}  // namespace octavo

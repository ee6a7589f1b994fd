// Huge pages for packed weights. Products read a weight from end to end; with pages of 4 KiB the
// walks through page tables cost up to a seventh of the time where weights do not fit the TLB (8
// MiB), and more in virtual machines. Included by operators that pack and by benchmarks.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace octavo {

/// Requests pages of 2 MiB for the memory that `write` fills, where it holds whole ones: before
/// `write`, and after it for memory that was used before and has pages already. The system may
/// refuse.
template <class Write>
void write_to_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes,
                         Write&& write) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto end =
      (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  auto* const start = reinterpret_cast<void*>(begin);
  if (begin < end) madvise(start, end - begin, MADV_HUGEPAGE);
  write();
  if (begin < end) madvise(start, end - begin, kCollapse);
#else
  write();
#endif
}

}  // namespace octavo

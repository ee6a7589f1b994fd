// The only place where kernels meet threads. Drivers call parallel_for; whoever hosts the kernels
// installs the pool: ops/ installs Torch's (torch::stable::parallel_for), the C++ tests and
// benchmarks install OpenMP's (parallel_openmp.cpp), and without either everything runs serially.
// No kernel owns a thread.
#pragma once

#include <cstdint>

namespace octavo {

/// Body of a parallel range: work on [begin, end).
using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);

/// Splits [begin, end) into at most max_threads() pieces of at least `grain` and runs them. The
/// bodies that it is given never throw.
using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain, RangeFunction body,
                             void* context);

/// Installs a pool. `max_threads` tells how many threads the pool would use now (1 inside a range).
void set_parallel(ParallelFor run, int (*max_threads)());

int max_threads();

/// Runs body over [begin, end). Each piece sets the default rounding mode and clears flush-to-zero,
/// and restores the caller's modes. Serial for nested calls, in forked children, and for ranges <=
/// grain. What a piece throws (memory may end) is thrown here once all pieces have ended.
void parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFunction body, void* context);

/// The same for a callable f(begin, end).
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, F&& f) {
  parallel_for(
      begin, end, grain, [](void* c, int64_t b, int64_t e) { (*static_cast<F*>(c))(b, e); }, &f);
}

}  // namespace octavo

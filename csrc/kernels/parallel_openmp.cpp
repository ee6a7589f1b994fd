// OpenMP as the pool of the C++ tests and micro-benchmarks, installed by linking this file. Never
// part of the product, where exactly one OpenMP runtime may be mapped: Torch's.
#include <omp.h>

#include <algorithm>

#include "parallel.h"

namespace octavo {
namespace {

void run_openmp(int64_t begin, int64_t end, int64_t grain, RangeFunction body, void* context) {
  const int64_t pieces =
      std::min<int64_t>(omp_get_max_threads(), (end - begin + grain - 1) / grain);
  const int64_t size = (end - begin + pieces - 1) / pieces;
#pragma omp parallel for num_threads(static_cast <int>(pieces)) schedule(static, 1)
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t first = begin + i * size;
    const int64_t last = std::min(end, first + size);
    if (first < last) body(context, first, last);
  }
}

int openmp_threads() { return omp_in_parallel() ? 1 : omp_get_max_threads(); }

const bool installed = [] {
  set_parallel(run_openmp, openmp_threads);
  return true;
}();

}  // namespace
}  // namespace octavo

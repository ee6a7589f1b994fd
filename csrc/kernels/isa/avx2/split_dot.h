// The dot product of AVX2 on split panels (split_panel.h): vpmaddubsw, vpmaddwd, vpaddd. Included
// by this folder's gemm.cpp.
#pragma once

#include "split_panel.h"
#include "ymm_bytes.h"
#include "ymm_gemm.h"

namespace octavo::avx2 {
namespace {

struct SplitDot : YmmBytes {
  static constexpr int kPixels = 5;  // 10 accumulators, 2 weights, activation, product, ones
  static constexpr bool kRest = true;
  /// Inline assembly, because the compiler's own order of intrinsics spills accumulators.
  static inline __attribute__((always_inline)) void add(__m256i& sum, const A& a, const B& b) {
    __m256i product;
    __asm__(
        "vpmaddubsw %3, %2, %1\n\t"
        "vpmaddwd %4, %1, %1\n\t"
        "vpaddd %1, %0, %0"
        : "+x"(sum), "=&x"(product)
        : "x"(a), "x"(b), "x"(_mm256_set1_epi16(1)));
  }
  /// The job's runs of a group of 16 columns, and where the rests' activations lie.
  static void place_weights(const GemmJob& job, Place& place) {
    const SplitGroup g = split_group(job.split, job.depth / 4, place.column / 16);
    const int64_t quads = job.run_bytes / 4, begin = job.first_run * quads;
    place.b = g.main + begin * 64;
    place.b_step = 64;
    for (int half = 0; half < 2; ++half) {
      int64_t i = 0, run = 0;
      while (i < g.count[half] && g.quad[half][i] < begin) ++i;
      place.rest[half] = {0, g.rest[half] + i * 32, g.offset[half]};
      for (; i < g.count[half]; ++i) {
        const int64_t quad = g.quad[half][i] - begin;
        while (run < job.runs && quad >= (run + 1) * quads) ++run;
        if (run == job.runs) break;
        g.offset[half][place.rest[half].count++] = job.run_offset[run] + 4 * (quad - run * quads);
      }
    }
  }
};

}  // namespace
}  // namespace octavo::avx2

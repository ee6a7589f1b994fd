// Driver of the search for clip ranges: errors of the rows of a weight, rounded with many scales
// each. Called by ops/; calls the clip-error micro-kernel.
#include <algorithm>

#include "dispatch.h"
#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"

namespace octavo {
namespace {

// Values worth a thread: 40 us at 1 ns.
constexpr int64_t kGrain = 40'000;

}  // namespace

void clip_error(const ClipErrors& e, double* error) {
  const ElementTable& t = active_table().element;
  const int64_t work = std::max<int64_t>(1, e.columns * e.scales);
  parallel_for(0, e.rows, std::max<int64_t>(1, kGrain / work), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      ClipErrorJob job{};
      job.x = e.x + r * e.columns;
      job.importance = e.importance == nullptr ? nullptr : e.importance + r * e.columns;
      job.count = e.columns;
      job.unit = e.unit[r];
      job.low = e.low[r];
      job.high = e.high[r];
      for (int64_t s = 0; s < e.scales; ++s) {
        job.scale = e.scale[r * e.scales + s];
        error[r * e.scales + s] = t.clip_error_f32(job);
      }
    }
  });
}

}  // namespace octavo

// Drivers that observe float values: range of the finite ones, per tensor or channel, and
// histograms. Called by ops/; calls the minmax micro-kernels. All results are sums of counts and
// extrema, so the order in which threads contribute does not matter.
#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "dispatch.h"
#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"

namespace octavo {
namespace {

// 2^18 floats at 0.1 to 0.2 ns are about 40 us.
constexpr int64_t kGrain = int64_t{1} << 18;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void merge(const MinMax& part, MinMax* whole) {
  whole->min = std::min(whole->min, part.min);
  whole->max = std::max(whole->max, part.max);
  whole->non_finite += part.non_finite;
}

// Extremes that are -0 become +0: which of two equal zeros is found depends on the order, and a sum
// with +0 is +0 (rounding to nearest).
void settle_zeros(MinMax* result, int64_t count) {
  parallel_for(0, 1, 1, [&](int64_t, int64_t) {
    for (int64_t i = 0; i < count; ++i) {
      result[i].min += 0.0f;
      result[i].max += 0.0f;
    }
  });
}

}  // namespace

MinMax minmax(const float* x, int64_t count) {
  const ElementTable& t = active_table().element;
  MinMax result{kInfinity, -kInfinity, 0};
  std::mutex merging;
  parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    MinMax part{kInfinity, -kInfinity, 0};
    t.minmax_f32(x + begin, end - begin, &part.min, &part.max, &part.non_finite);
    const std::lock_guard<std::mutex> lock(merging);
    merge(part, &result);
  });
  settle_zeros(&result, 1);
  return result;
}

void minmax_per_channel(const float* x, int64_t outer, int64_t channels, int64_t inner,
                        MinMax* out) {
  const ElementTable& t = active_table().element;
  std::fill(out, out + channels, MinMax{kInfinity, -kInfinity, 0});
  if (inner == 1 && channels > 0) {
    std::mutex merging;
    parallel_for(0, outer, kGrain / channels, [&](int64_t begin, int64_t end) {
      float min[kMinMaxColumns], max[kMinMaxColumns];
      int64_t non_finite[kMinMaxColumns];
      for (int64_t c = 0; c < channels; c += kMinMaxColumns) {
        const int64_t columns = std::min(kMinMaxColumns, channels - c);
        std::fill(min, min + columns, kInfinity);
        std::fill(max, max + columns, -kInfinity);
        std::fill(non_finite, non_finite + columns, 0);
        t.minmax_columns_f32(x + begin * channels + c, end - begin, channels, columns, min, max,
                             non_finite);
        const std::lock_guard<std::mutex> lock(merging);
        for (int64_t i = 0; i < columns; ++i) merge({min[i], max[i], non_finite[i]}, &out[c + i]);
      }
    });
  } else {
    parallel_for(0, channels, kGrain / std::max<int64_t>(outer * inner, 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t c = begin; c < end; ++c) {
                     for (int64_t o = 0; o < outer; ++o) {
                       t.minmax_f32(x + (o * channels + c) * inner, inner, &out[c].min, &out[c].max,
                                    &out[c].non_finite);
                     }
                   }
                 });
  }
  settle_zeros(out, channels);
}

void histogram(const float* x, int64_t count, int32_t exponent, int64_t first, int64_t bin_count,
               int64_t* bins) {
  const ElementTable& t = active_table().element;
  // Counting takes about 1 ns a value. Every chunk counts into bins of its own.
  constexpr int64_t kCountingGrain = kGrain / 4;
  const int64_t chunks = std::clamp<int64_t>(count / kCountingGrain, 1, max_threads());
  std::vector<int64_t> partial(static_cast<size_t>(chunks * bin_count), 0);
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = count * i / chunks, to = count * (i + 1) / chunks;
      t.histogram_f32(x + from, to - from, exponent, first, bin_count,
                      partial.data() + i * bin_count);
    }
  });
  for (int64_t i = 0; i < chunks * bin_count; ++i) bins[i % bin_count] += partial[i];
}

}  // namespace octavo

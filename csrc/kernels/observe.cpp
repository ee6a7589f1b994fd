// Drivers that follow ranges while a model trains: extremes of any type of values, the range with
// the smallest squared error, the moving average, and the steps that follow. Called by ops/; calls
// minmax.cpp and the fake-quantize micro-kernels.
#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "dispatch.h"
#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t kGrain = int64_t{1} << 18;
constexpr int64_t kBlock = int64_t{1} << 15;  // long enough for hardware prefetching
constexpr int64_t kPart = 4096;               // floats that stay in L1
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

// Goes from the last block to the first: the end of a tensor is still in the caches, since the
// layer before wrote it last, and the quantizing pass that follows reads the beginning first.
// Half-precision values pass through a small buffer of floats.
MinMax minmax_of_all(const KernelTable& table, FloatType type, const void* x, int64_t count) {
  const ElementTable& t = table.element;
  const FakeKernels& k = table.fake.of[static_cast<int>(type)];
  MinMax result{kInfinity, -kInfinity, 0};
  std::mutex merging;
  parallel_for(0, (count + kBlock - 1) / kBlock, kGrain / kBlock, [&](int64_t begin, int64_t end) {
    MinMax part{kInfinity, -kInfinity, 0};
    for (int64_t block = end; block-- > begin;) {
      const int64_t first = block * kBlock, last = std::min(count, first + kBlock);
      if (type == FloatType::kF32) {
        t.minmax_f32(static_cast<const float*>(x) + first, last - first, &part.min, &part.max,
                     &part.non_finite);
        continue;
      }
      float values[kPart];
      for (int64_t i = first; i < last; i += kPart) {
        const int64_t some = std::min(kPart, last - i);
        k.widen(static_cast<const uint16_t*>(x) + i, some, values);
        t.minmax_f32(values, some, &part.min, &part.max, &part.non_finite);
      }
    }
    const std::lock_guard<std::mutex> lock(merging);
    result.min = std::min(result.min, part.min);
    result.max = std::max(result.max, part.max);
    result.non_finite += part.non_finite;
  });
  // -0 and 0 are equal, and which of them is found depends on the order; the sum is +0.
  parallel_for(0, 1, 1, [&](int64_t, int64_t) {
    result.min += 0.0f;
    result.max += 0.0f;
  });
  return result;
}

struct Step {
  float scale, zero_point;
};

// Inside a parallel range, where the rounding mode is the default one.
Step step_of_range(float min, float max, const RangeRule& rule) {
  const float low = std::clamp(min, -kLargest, 0.0f), high = std::clamp(max, 0.0f, kLargest);
  const auto qmin = static_cast<float>(rule.qmin), qmax = static_cast<float>(rule.qmax);
  if (rule.symmetric) return {std::max(std::max(-low, high) / qmax, kMinScale), 0.0f};
  const float scale = std::max(std::min(high - low, kLargest) / (qmax - qmin), kMinScale);
  return {scale, std::clamp(std::nearbyint(-low / scale) + qmin, qmin, qmax)};
}

}  // namespace

void widen(FloatType type, const void* x, int64_t first, int64_t count, float* y) {
  const int64_t size = type == FloatType::kF32 ? 4 : 2;
  active_table().fake.of[static_cast<int>(type)].widen(static_cast<const char*>(x) + first * size,
                                                       count, y);
}

void observed_ranges(FloatType type, const void* x, int64_t outer, int64_t channels, int64_t inner,
                     bool relu, MinMax* out) {
  const KernelTable& table = active_table();
  const int64_t count = outer * channels * inner;
  if (channels == 1) {
    out[0] = minmax_of_all(table, type, x, count);
  } else if (type == FloatType::kF32) {
    minmax_per_channel(static_cast<const float*>(x), outer, channels, inner, out);
  } else {
    std::vector<float> values(static_cast<size_t>(count));
    table.fake.of[static_cast<int>(type)].widen(x, count, values.data());
    minmax_per_channel(values.data(), outer, channels, inner, out);
  }
  for (int64_t c = 0; relu && c < channels; ++c) {
    if (out[c].min > out[c].max) continue;
    out[c].min = std::max(out[c].min, 0.0f);
    out[c].max = std::max(out[c].max, 0.0f);
  }
}

MinMax shrunk(const float* sample, int64_t count, bool relu, const RangeRule& rule, MinMax range) {
  const FakeKernels& k = active_table().fake.of[static_cast<int>(FloatType::kF32)];
  float values[kRangeSample], quantized[kRangeSample];
  for (int64_t i = 0; i < count; ++i) {
    values[i] = std::isfinite(sample[i]) ? sample[i] : 0.0f;
    if (relu && values[i] <= 0.0f) values[i] = 0.0f;
  }
  MinMax best = range;
  double least = std::numeric_limits<double>::infinity();
  parallel_for(0, 1, 1, [&](int64_t, int64_t) {
    for (int i = 20; i >= 4; --i) {
      const float ratio = static_cast<float>(i / 20.0);
      const MinMax now{range.min * ratio, range.max * ratio, range.non_finite};
      const Step step = step_of_range(now.min, now.max, rule);
      const float lo = static_cast<float>(rule.qmin) - step.zero_point;
      const float hi = static_cast<float>(rule.qmax) - step.zero_point;
      k.run(values, count, {1.0f / step.scale, step.scale, lo, hi, 0.0f, 0.0f, false}, quantized,
            nullptr, false);
      // Four sums, so that additions do not wait for one another: 95 us a search, with one sum 123
      // us.
      double sums[4] = {};
      for (int64_t j = 0; j < count; ++j) {
        const auto difference = static_cast<double>(quantized[j] - values[j]);
        sums[j % 4] += difference * difference;
      }
      const double error = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      if (error < least) {
        least = error;
        best = now;
      }
    }
  });
  return best;
}

void move_range(const MinMax* now, int64_t channels, float momentum, float* range) {
  parallel_for(0, 1, 1, [&](int64_t, int64_t) {
    for (int64_t c = 0; c < channels; ++c) {
      if (now[c].min > now[c].max) continue;
      float &min = range[c], &max = range[channels + c];
      const bool fresh = min > max;
      min = fresh ? now[c].min : min + momentum * (now[c].min - min);
      max = fresh ? now[c].max : max + momentum * (now[c].max - max);
    }
  });
}

void steps_of_ranges(const float* range, int64_t channels, const RangeRule& rule, float* scale,
                     float* zero_point) {
  parallel_for(0, 1, 1, [&](int64_t, int64_t) {
    for (int64_t c = 0; c < channels; ++c) {
      const Step step = step_of_range(range[c], range[channels + c], rule);
      scale[c] = step.scale;
      zero_point[c] = step.zero_point;
    }
  });
}

}  // namespace octavo

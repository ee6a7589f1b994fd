// Drivers of fake quantization and its gradients: steps per tensor, channel or group become runs or
// rows of columns; sums are formed in a fixed grid of blocks. Called by ops/; calls the
// micro-kernels of fake_quantize_table.h.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"

namespace octavo {
namespace {

// 2^18 values at 0.1 to 0.2 ns are about 40 us.
constexpr int64_t kGrain = int64_t{1} << 18;
// Blocks of a run: the unit of work and of sums. A multiple of 64, so that threads share no cache
// line and blocks of a mask start at a byte.
constexpr int64_t kBlock = int64_t{1} << 15;
// Results of at least this many bytes are written past the caches where the kernel can.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

int64_t size_of(FloatType type) { return type == FloatType::kF32 ? 4 : 2; }

template <class P>
P* at(P* values, FloatType type, int64_t index) {
  using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
  return static_cast<Byte*>(values) + index * size_of(type);
}

const FakeKernels& kernels_of(FloatType type) {
  return active_table().fake.of[static_cast<int>(type)];
}

bool as_columns(const FakeSteps& s) { return s.inner == 1 && s.channels > 1; }

// rne(t) >= low: t = low - 1/2 is a tie, which goes to low where low is even.
float inside_from(float low) {
  const bool even = static_cast<int32_t>(low) % 2 == 0;
  return even ? low - 0.5f : std::nextafterf(low - 0.5f, 1024.0f);
}
float inside_to(float high) { return -inside_from(-high); }

// Forms rules inside a parallel range, where the rounding mode is the default one.
class Rules {
 public:
  explicit Rules(const FakeSteps& steps) : s_(steps) { set_zero(0.0f, &rule_); }

  FakeRule operator[](int64_t index) const {
    FakeRule rule = rule_;
    rule.scale = used_scale(s_, index);
    if (s_.zero_point != nullptr) {
      float zero = s_.zero_point[index];
      if (s_.learned) {
        if (std::isnan(zero)) rule.scale = zero;
        zero = std::clamp(std::nearbyint(zero), static_cast<float>(s_.qmin),
                          static_cast<float>(s_.qmax));
        if (std::isnan(zero)) zero = static_cast<float>(s_.qmin);
      }
      set_zero(zero, &rule);
    }
    rule.inverse = 1.0f / rule.scale;
    return rule;
  }

  static float used_scale(const FakeSteps& s, int64_t index) {
    const float scale = s.scale[index];
    // NaN stays NaN.
    return !s.learned ? scale : std::fabs(scale) < kMinScale ? kMinScale : std::fabs(scale);
  }

 private:
  void set_zero(float zero, FakeRule* rule) const {
    rule->lo = static_cast<float>(s_.qmin) - zero;
    rule->hi = static_cast<float>(s_.qmax) - zero;
    rule->in_lo = inside_from(rule->lo);
    rule->in_hi = inside_to(rule->hi);
    rule->relu = s_.relu;
    // max(x, 0) is a clamp of t, since lo <= 0 <= hi.
    if (s_.relu) rule->lo = std::max(rule->lo, 0.0f);
  }

  const FakeSteps& s_;
  FakeRule rule_{};
};

/// `count` zeros, aligned to a cache line: a vector that crosses two lines takes twice as long.
/// Kernels of columns: 0.29 ns a value, aligned 0.24 ns.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t count) : values_(static_cast<size_t>(count) + 64 / sizeof(T)) {
    const auto address = reinterpret_cast<uintptr_t>(values_.data());
    data_ = values_.data() + (64 - address % 64) % 64 / sizeof(T);
  }
  T* data() { return data_; }

 private:
  std::vector<T> values_;
  T* data_;
};

/// Rules of all columns, as the kernels read them.
class ColumnRules {
 public:
  explicit ColumnRules(const FakeSteps& s)
      : pitch_((s.channels + 15) / 16 * 16), values_(6 * pitch_) {
    parallel_for(0, 1, 1, [&](int64_t, int64_t) {
      const Rules rules(s);
      for (int64_t c = 0; c < s.channels; ++c) {
        const FakeRule r = rules[c];
        const float fields[6] = {r.inverse, r.scale, r.lo, r.hi, r.in_lo, r.in_hi};
        for (int64_t k = 0; k < 6; ++k) values_.data()[k * pitch_ + c] = fields[k];
      }
    });
    const float* p = values_.data();
    view = {p, p + pitch_, p + 2 * pitch_, p + 3 * pitch_, p + 4 * pitch_, p + 5 * pitch_, s.relu};
  }

  FakeColumns view;

 private:
  int64_t pitch_;
  Aligned<float> values_;
};

/// One run of the grid: `count` values from `first` on, their parameters, where their row's mask
/// starts and which block of sums they are.
struct Run {
  int64_t first, count, parameter, mask_byte, block;
};

/// The grid of runs: rows cut into groups, or into blocks where there is one group.
struct Grid {
  explicit Grid(const FakeSteps& s)
      : rows(s.outer * s.channels),
        row(s.inner),
        channels(s.channels),
        groups(groups_of(s)),
        group(groups > 1 ? s.group : kBlock),
        pieces((row + group - 1) / group) {}

  // Calls f(Run) for every run of the rows and pieces, in parallel.
  template <class F>
  void for_each(F&& f) const {
    if (row == 0) return;
    const int64_t bytes = (row + 7) / 8;
    parallel_for(
        0, rows * pieces, std::max<int64_t>(1, kGrain / std::min(row, group)),
        [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t r = i / pieces, piece = i % pieces, channel = r % channels;
            const int64_t start = piece * group;
            f(Run{r * row + start, std::min(group, row - start),
                  groups > 1 ? channel * groups + piece : channel, r * bytes + start / 8, i});
          }
        });
  }

  /// Sums of blocks of one parameter, in the order of rows and pieces.
  template <class F>
  void for_each_block(int64_t parameter, F&& f) const {
    if (groups > 1) return f(parameter);
    for (int64_t r = parameter; r < rows; r += channels) {
      for (int64_t piece = 0; piece < pieces; ++piece) f(r * pieces + piece);
    }
  }

  int64_t rows, row, channels, groups, group, pieces;
};

bool is_large(FloatType type, int64_t count, const void* to) {
  return count * size_of(type) >= kStreamBytes && reinterpret_cast<uintptr_t>(to) % 64 == 0;
}
bool streams(FloatType type, int64_t count, const void* to, const Grid& grid) {
  return is_large(type, count, to) && grid.pieces > 1 && grid.groups == 1 &&
         grid.row * size_of(type) % 64 == 0;
}

double summed(const double* lanes) {
  double half[8];
  for (int i = 0; i < 8; ++i) half[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) half[i] += half[i + 4];
  return (half[0] + half[2]) + (half[1] + half[3]);
}

int64_t count_of(const FakeSteps& s) { return s.outer * s.channels * s.inner; }

// Rows of columns that one piece of work sums up: at least 64, so that there are few partial sums.
int64_t rows_a_piece(const FakeSteps& s) { return std::max<int64_t>(64, kBlock / s.channels); }

float finished(double sum, double factor, float scale) {
  return static_cast<float>(factor * (scale < 0.0f ? -sum : sum));
}

}  // namespace

int64_t groups_of(const FakeSteps& s) { return s.inner == 0 ? 0 : (s.inner - 1) / s.group + 1; }

MaskShape mask_shape(const FakeSteps& s) {
  if (as_columns(s)) return {s.outer, s.channels};
  return {s.outer * s.channels, s.inner};
}

void fake_quantize(FloatType type, const void* x, const FakeSteps& s, void* y, uint8_t* mask) {
  if (count_of(s) == 0) return;
  const FakeKernels& k = kernels_of(type);
  if (as_columns(s)) {
    const ColumnRules rules(s);
    const int64_t bytes = (s.channels + 7) / 8;
    const bool stream = is_large(type, count_of(s), y) && s.channels * size_of(type) % 64 == 0;
    parallel_for(
        0, s.outer, std::max<int64_t>(1, kGrain / s.channels), [&](int64_t begin, int64_t end) {
          const int64_t first = begin * s.channels;
          k.columns(at(x, type, first), end - begin, s.channels, rules.view, at(y, type, first),
                    mask == nullptr ? nullptr : mask + begin * bytes, stream);
        });
    return;
  }
  const Grid grid(s);
  const Rules rules(s);
  const bool stream = streams(type, count_of(s), y, grid);
  grid.for_each([&](const Run& r) {
    k.run(at(x, type, r.first), r.count, rules[r.parameter], at(y, type, r.first),
          mask == nullptr ? nullptr : mask + r.mask_byte, stream);
  });
}

bool fake_quantize_watched(FloatType type, const void* x, const FakeSteps& s, void* y) {
  const FakeKernels& k = kernels_of(type);
  const Grid grid(s);
  const Rules rules(s);
  const bool stream = streams(type, count_of(s), y, grid);
  std::atomic<bool> finite{true};
  grid.for_each([&](const Run& r) {
    if (!k.watched(at(x, type, r.first), r.count, rules[r.parameter], at(y, type, r.first),
                   stream)) {
      finite.store(false, std::memory_order_relaxed);
    }
  });
  return finite.load();
}

void fake_quantize_backward(FloatType type, const void* dy, const uint8_t* mask, MaskShape shape,
                            void* dx) {
  const FakeKernels& k = kernels_of(type);
  const FakeSteps rows{1,     shape.rows, shape.row, std::max<int64_t>(shape.row, 1), 0, 0, false,
                       false, nullptr,    nullptr};
  const Grid grid(rows);
  const bool stream = streams(type, count_of(rows), dx, grid);
  grid.for_each([&](const Run& r) {
    k.masked(at(dy, type, r.first), r.count, mask + r.mask_byte, at(dx, type, r.first), stream);
  });
}

bool fake_quantize_codes(const float* y, const FakeSteps& s, uint8_t* codes) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  // Up to here 1 / scale is normal, and scale times its rounded inverse near enough to 1.
  constexpr float kLargestScale = 0x1p120f;
  constexpr int64_t kPart = 4096;  // is read twice, the second time from L1
  std::atomic<bool> exact{true};
  if (as_columns(s)) {
    const ColumnRules rules(s);
    const FakeColumns& r = rules.view;
    parallel_for(0, s.outer, std::max<int64_t>(1, kGrain / s.channels),
                 [&](int64_t begin, int64_t end) {
                   bool all = true;
                   for (int64_t i = begin * s.channels; i < end * s.channels; i += s.channels) {
                     for (int64_t c = 0; c < s.channels; ++c) {
                       const float t = y[i + c] * r.inverse[c];
                       all &= std::isfinite(y[i + c]) && r.scale[c] <= kLargestScale;
                       const float n = r.lo[c] > t || t != t ? r.lo[c] : std::min(t, r.hi[c]);
                       codes[i + c] = static_cast<uint8_t>((n - r.lo[c]) + 0.5f);
                     }
                   }
                   if (!all) exact = false;
                 });
    return exact;
  }
  const ElementTable& t = active_table().element;
  const Rules rules(s);
  Grid(s).for_each([&](const Run& run) {
    const FakeRule r = rules[run.parameter];
    const QuantizeRule rule{r.inverse, r.lo, r.hi, static_cast<int32_t>(-r.lo)};
    float min = kInfinity, max = -kInfinity;
    int64_t bad = 0;
    for (int64_t i = 0; i < run.count; i += kPart) {
      const int64_t some = std::min(kPart, run.count - i);
      t.minmax_f32(y + run.first + i, some, &min, &max, &bad);
      t.quantize_f32_u8(y + run.first + i, some, rule, codes + run.first + i);
    }
    if (bad > 0 || r.scale > kLargestScale) exact = false;
  });
  return exact;
}

void fake_quantize_values(const uint8_t* codes, const FakeSteps& s, float* y) {
  if (as_columns(s)) {
    const ColumnRules rules(s);
    const FakeColumns& r = rules.view;
    parallel_for(0, s.outer, std::max<int64_t>(1, kGrain / s.channels),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin * s.channels; i < end * s.channels; i += s.channels) {
                     for (int64_t c = 0; c < s.channels; ++c) {
                       y[i + c] = (static_cast<float>(codes[i + c]) + r.lo[c]) * r.scale[c];
                     }
                   }
                 });
    return;
  }
  const ElementTable& t = active_table().element;
  const Rules rules(s);
  Grid(s).for_each([&](const Run& run) {
    const FakeRule r = rules[run.parameter];
    t.dequantize_u8_f32(codes + run.first, run.count, r.scale, static_cast<int32_t>(-r.lo),
                        y + run.first);
  });
}

void fake_quantize_learned_backward(FloatType type, const void* dy, const void* x,
                                    const FakeSteps& s, double grad_scale, void* dx,
                                    float* to_scale, float* to_zero) {
  const FakeKernels& k = kernels_of(type);
  const int64_t parameters = s.channels * groups_of(s);
  const auto store = [&](int64_t i, double scale_sum, double zero_sum) {
    to_scale[i] = finished(scale_sum, grad_scale, s.scale[i]);
    if (to_zero != nullptr) {
      to_zero[i] = static_cast<float>(grad_scale * (-zero_sum * Rules::used_scale(s, i)));
    }
  };
  if (as_columns(s)) {
    const ColumnRules rules(s);
    const int64_t rows = rows_a_piece(s), pieces = (s.outer + rows - 1) / rows;
    const int64_t pitch = (s.channels + 7) / 8 * 8;
    Aligned<double> sums(2 * pieces * pitch);
    const auto sum_of = [&](int64_t piece, int64_t which) {
      return sums.data() + (2 * piece + which) * pitch;
    };
    parallel_for(0, pieces, std::max<int64_t>(1, kGrain / (rows * s.channels)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t piece = begin; piece < end; ++piece) {
                     const int64_t row = piece * rows, first = row * s.channels;
                     k.learned_columns(at(dy, type, first), at(x, type, first),
                                       std::min(rows, s.outer - row), s.channels, rules.view,
                                       at(dx, type, first), sum_of(piece, 0),
                                       to_zero == nullptr ? nullptr : sum_of(piece, 1));
                   }
                 });
    parallel_for(0, 1, 1, [&](int64_t, int64_t) {
      for (int64_t c = 0; c < s.channels; ++c) {
        double scale_sum = 0.0, zero_sum = 0.0;
        for (int64_t piece = 0; piece < pieces; ++piece) {
          scale_sum += sum_of(piece, 0)[c];
          zero_sum += sum_of(piece, 1)[c];
        }
        store(c, scale_sum, zero_sum);
      }
    });
    return;
  }
  const Grid grid(s);
  const Rules rules(s);
  const bool stream = streams(type, count_of(s), dx, grid);
  struct Pair {
    double scale, zero;
  };
  std::vector<Pair> sums(static_cast<size_t>(grid.rows * grid.pieces));
  grid.for_each([&](const Run& r) {
    FakeSums lanes;
    k.learned(at(dy, type, r.first), at(x, type, r.first), r.count, rules[r.parameter],
              at(dx, type, r.first), &lanes, stream);
    sums[static_cast<size_t>(r.block)] = {summed(lanes.scale), summed(lanes.zero)};
  });
  parallel_for(0, 1, 1, [&](int64_t, int64_t) {
    for (int64_t i = 0; i < parameters; ++i) {
      double scale_sum = 0.0, zero_sum = 0.0;
      grid.for_each_block(i, [&](int64_t block) {
        scale_sum += sums[static_cast<size_t>(block)].scale;
        zero_sum += sums[static_cast<size_t>(block)].zero;
      });
      store(i, scale_sum, zero_sum);
    }
  });
}

float fake_quantize_clipped_backward(FloatType type, const void* dy, const void* x, int64_t count,
                                     float alpha, void* dx) {
  const FakeKernels& k = kernels_of(type);
  const FakeSteps whole{1,     1,      count,  std::max<int64_t>(count, 1), 0, 0, false,
                        false, &alpha, nullptr};
  const Grid grid(whole);
  std::vector<double> sums(static_cast<size_t>(grid.pieces));
  grid.for_each([&](const Run& r) {
    FakeSums lanes;
    k.clipped(at(dy, type, r.first), at(x, type, r.first), r.count, std::fabs(alpha),
              at(dx, type, r.first), &lanes);
    sums[static_cast<size_t>(r.block)] = summed(lanes.scale);
  });
  double sum = 0.0;
  parallel_for(0, 1, 1, [&](int64_t, int64_t) {
    for (const double part : sums) sum += part;
    sum = finished(sum, 1.0, alpha);
  });
  return static_cast<float>(sum);
}

namespace {

std::vector<LevelTable> tables_of(const FakeLevels& levels) {
  std::vector<LevelTable> tables(static_cast<size_t>(levels.tables));
  for (int64_t i = 0; i < levels.tables; ++i) {
    LevelTable& t = tables[static_cast<size_t>(i)];
    const int8_t* from = levels.levels + i * levels.count;
    t.count = static_cast<int32_t>(levels.count);
    for (int64_t j = 0; j < 256; ++j) {
      const int64_t here = std::min(j, levels.count - 1);
      t.level[j] = static_cast<float>(from[here]);
      t.middle[j] = j + 1 < levels.count ? 0.5f * static_cast<float>(from[here] + from[here + 1])
                                         : std::numeric_limits<float>::infinity();
    }
  }
  return tables;
}

LevelRule level_rule(const FakeSteps& s, bool one_scale, const std::vector<LevelTable>& tables,
                     const Run& r, bool clip) {
  const int64_t channel = r.parameter / groups_of(s);
  const size_t table = tables.size() == 1 ? 0 : static_cast<size_t>(channel / 64);
  const float scale = Rules::used_scale(s, one_scale ? 0 : r.parameter);
  return {&tables[table], 1.0f / scale, scale, clip};
}

}  // namespace

void fake_quantize_levels(FloatType type, const void* x, const FakeSteps& s,
                          const FakeLevels& levels, void* y) {
  const FakeKernels& k = kernels_of(type);
  const std::vector<LevelTable> tables = tables_of(levels);
  Grid(s).for_each([&](const Run& r) {
    k.levels(at(x, type, r.first), r.count, level_rule(s, levels.one_scale, tables, r, false),
             at(y, type, r.first));
  });
}

void fake_quantize_levels_backward(FloatType type, const void* dy, const void* x,
                                   const FakeSteps& s, const FakeLevels& levels, double grad_scale,
                                   void* dx, float* to_scale) {
  const FakeKernels& k = kernels_of(type);
  const std::vector<LevelTable> tables = tables_of(levels);
  const Grid grid(s);
  std::vector<double> sums(static_cast<size_t>(grid.rows * grid.pieces));
  grid.for_each([&](const Run& r) {
    FakeSums lanes;
    k.levels_gradient(at(dy, type, r.first), at(x, type, r.first), r.count,
                      level_rule(s, levels.one_scale, tables, r, dx != nullptr),
                      dx == nullptr ? nullptr : at(dx, type, r.first), &lanes);
    sums[static_cast<size_t>(r.block)] = summed(lanes.scale);
  });
  parallel_for(0, 1, 1, [&](int64_t, int64_t) {
    if (levels.one_scale) {
      double sum = 0.0;
      for (const double part : sums) sum += part;
      to_scale[0] = finished(sum, grad_scale, s.scale[0]);
      return;
    }
    const int64_t parameters = s.channels * groups_of(s);
    for (int64_t i = 0; i < parameters; ++i) {
      double sum = 0.0;
      grid.for_each_block(i, [&](int64_t block) { sum += sums[static_cast<size_t>(block)]; });
      to_scale[i] = finished(sum, grad_scale, s.scale[i]);
    }
  });
}

}  // namespace octavo

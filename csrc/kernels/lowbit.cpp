// Drivers of packed low-bit weights: linear layers with activations quantized dynamically, with
// given parameters, or left float; look-ups in packed rows. They decide blocking, threads and which
// tiles (lowbit_table.h) run: few rows are multiplied straight from packed codes, more rows with
// levels unpacked into cache. Called by ops/.
#include <algorithm>

#include "bits.h"
#include "dispatch.h"
#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"
#include "quantize_rule.h"
#include "scratch.h"

namespace octavo {
namespace {

/// Work worth a thread, in multiply-adds: 40 us at 200 GMAC/s.
constexpr int64_t kGrain = int64_t{8} << 20;

/// Rows taken at a time: their codes (or floats) stay in L2 while all panels pass.
constexpr int64_t kRowsBytes = 1 << 20;

/// Bytes of a panel that are multiplied with all rows before the next. Unpacked levels
/// (kChunkBytes) stay in L1 beside the activations of a tile. Codes that are read directly
/// (kStoredBytes: a panel of 4096 inputs at 8 bits) stay in L2: in chunks as small as those of
/// levels, products of 128 rows took 25 % longer, because their float sums filled L1.
constexpr int64_t kChunkBytes = 24 << 10;
constexpr int64_t kStoredBytes = 288 << 10;

/// Prefetch distance in bytes: kAhead for weights of up to kCached bytes, which come from L3,
/// kFarAhead for others, which come from memory. Weights in L3, Zen 5, time beside that of 2 KiB:
///
///   4 KiB          4 bits  +10 %
///   no prefetches  3 bits  +15 %
constexpr int64_t kCached = 24 << 20;
constexpr int64_t kAhead = 2048, kFarAhead = 6144;

/// Prefetch distance into L2 for weights that come from memory; on Intel's processors only.
/// Products of one row at 2 to 4 bits, time beside that without these prefetches:
///
///   Intel  10 to 25 % less
///   Zen 5  20 % more
constexpr int64_t kFarAheadL2 = 9216;
bool asks_l2() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("intel") != 0;
#else
  return false;
#endif
}

enum ScratchUse { kCodes, kParams, kLevels, kSums, kScratchUses };

uint8_t* scratch(ScratchUse use, int64_t bytes) {
  thread_local Scratch memory[kScratchUses];
  return memory[use].get(bytes);
}

/// A packed weight of order kColumns.
struct Weight {
  explicit Weight(const void* packed)
      : bytes(static_cast<const uint8_t*>(packed)),
        header(*static_cast<const LowbitHeader*>(packed)),
        geometry(lowbit_geometry(header)),
        kind(static_cast<LowbitKind>(header.kind)) {}

  int32_t zero() const {
    if (kind == LowbitKind::kSymmetric) return 1 << (header.bits - 1);
    return kind == LowbitKind::kLevels ? 128 : 1;
  }
  const float* bias() const { return reinterpret_cast<const float*>(bytes + header.bias_offset); }

  /// Groups [first, last) of panel `p`.
  LowbitPanel panel(int64_t p, int64_t first, int64_t last) const {
    LowbitPanel view{};
    view.groups = bytes + header.codes_offset + group_start(header, geometry, p, first);
    view.width = lowbit_width(header, p);
    view.group_step =
        view.width * (geometry.word_bytes + stored_bytes(geometry.stored, geometry.group_codes));
    view.count = last - first;
    view.group_codes = geometry.group_codes;
    view.last_codes = last == header.groups ? geometry.last_codes : geometry.group_codes;
    view.n = std::min(kLowbitColumns, header.out_features - p * kLowbitColumns);
    view.stored = geometry.stored;
    view.kind = kind;
    view.wide = geometry.wide;
    view.word_bytes = geometry.word_bytes;
    view.zero = zero();
    if (kind == LowbitKind::kLevels) {
      view.levels =
          reinterpret_cast<const int8_t*>(bytes + header.levels_offset) + (p << header.bits);
    }
    static const int64_t far_l2 = asks_l2() ? kFarAheadL2 : 0;
    const bool far = header.total_bytes > kCached;
    view.ahead = far ? kFarAhead : kAhead;
    view.ahead_l2 = far ? far_l2 : 0;
    return view;
  }

  const uint8_t* bytes;
  const LowbitHeader& header;
  LowbitGeometry geometry;
  LowbitKind kind;
};

/// Rows of activations as the tiles read them.
struct Rows {
  int64_t count;
  uint8_t* codes;  // u8, or s8 where packed codes are multiplied
  int64_t pitch;
  float* scale;
  int32_t* zero_point;
  int32_t* starts;  // PackedJob's a_start, a row and group
};

/// Quantizes rows into the calling thread's scratch: every group padded with zeros to its codes.
Rows quantize_rows(const KernelTable& table, const float* x, int64_t count, int64_t ldx,
                   const QuantParams* fixed, const Weight& w, bool flipped) {
  const LowbitGeometry& g = w.geometry;
  const int64_t groups = w.header.groups, k = w.header.in_features;
  Rows rows{};
  rows.count = count;
  // A pitch of a multiple of 1 KiB would put the rows of a tile into few sets of L1.
  rows.pitch = round_up(g.total_codes, 64);
  if (rows.pitch % 1024 == 0) rows.pitch += 64;
  rows.codes = scratch(kCodes, round_up(count, kRowUnit) * rows.pitch);
  rows.scale = reinterpret_cast<float*>(scratch(kParams, count * (8 + 4 * groups)));
  rows.zero_point = reinterpret_cast<int32_t*>(rows.scale + count);
  rows.starts = rows.zero_point + count;
  const bool gaps = g.group_codes != g.group;
  for (int64_t i = 0; i < count; ++i) {
    const float* row = x + i * ldx;
    uint8_t* codes = rows.codes + i * rows.pitch;
    const QuantParams p = row_params(table.element, row, k, fixed);
    const QuantizeRule rule = rule_of(p);
    if (!gaps) table.element.quantize_f32_u8(row, k, rule, codes);
    for (int64_t j = 0; j < groups; ++j) {
      const int64_t inputs = group_inputs(w.header, j);
      uint8_t* group = codes + j * g.group_codes;
      if (gaps) table.element.quantize_f32_u8(row + j * g.group, inputs, rule, group);
      if (flipped) {
        rows.starts[i * groups + j] = -w.zero() * table.lowbit.flip_u8_s8(group, inputs);
      }
      const int64_t padded = j + 1 < groups ? g.group_codes : g.last_codes;
      std::fill(group + inputs, group + padded, uint8_t{0});
    }
    rows.scale[i] = p.scale;
    rows.zero_point[i] = p.zero_point;
  }
  return rows;
}

/// How many groups are multiplied at once where codes are read directly from packed memory: all of
/// them if one tile takes all rows.
int64_t groups_at_once(const LowbitTable& table, const Weight& w, int64_t rows,
                       int64_t group_bytes) {
  if (rows <= table.tile_rows) return w.header.groups;
  return std::max<int64_t>(1, kStoredBytes / std::max<int64_t>(1, group_bytes));
}

/// A panel's groups in chunks: calls multiply(job, first group) with the fields set that PackedJob
/// and GroupJob share.
template <class Job, class Multiply>
void for_each_chunk(const Weight& w, int64_t p, int64_t at_once, Job& job, Multiply&& multiply) {
  const int64_t groups = w.header.groups;
  job.acc = reinterpret_cast<float*>(scratch(kSums, job.rows * kLowbitColumns * 4));
  job.bias = w.bias() + p * kLowbitColumns;
  job.y += p * kLowbitColumns;
  for (int64_t g = 0; g < groups; g += at_once) {
    job.panel = w.panel(p, g, std::min(groups, g + at_once));
    job.first = g == 0;
    job.last = g + at_once >= groups;
    multiply(job, g);
  }
}

void multiply_packed(const LowbitTable& table, const Rows& rows, const Weight& w, int64_t p,
                     float* y, int64_t ldy) {
  PackedJob job{};
  job.pitch = rows.pitch;
  job.rows = rows.count;
  job.a_start_pitch = w.header.groups;
  job.row_scale = rows.scale;
  job.row_zero = rows.zero_point;
  job.y = y;
  job.ldy = ldy;
  const int64_t at_once = groups_at_once(table, w, rows.count, w.panel(p, 0, 1).group_step);
  for_each_chunk(w, p, at_once, job, [&](PackedJob& chunk, int64_t g) {
    chunk.a = reinterpret_cast<const int8_t*>(rows.codes) + g * w.geometry.group_codes;
    chunk.a_start = rows.starts + g;
    (w.kind == LowbitKind::kLevels ? table.multiply_packed_levels : table.multiply_packed)(chunk);
  });
}

/// Chunks of a panel with their levels in cache.
template <class Multiply>
void for_each_unpacked(const LowbitTable& table, const Weight& w, int64_t p, GroupJob& job,
                       Multiply&& multiply) {
  const int64_t group_bytes = w.geometry.group_codes * lowbit_width(w.header, p);
  const bool unpacks = w.geometry.stored < 8;
  const int64_t at_once =
      unpacks ? std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, group_bytes))
              : groups_at_once(table, w, job.rows, group_bytes);
  for_each_chunk(w, p, at_once, job, [&](GroupJob& chunk, int64_t g) {
    if (unpacks) {
      auto* levels = reinterpret_cast<int8_t*>(
          scratch(kLevels, std::min(at_once, w.header.groups) * group_bytes));
      table.unpack_levels(chunk.panel, levels);
      chunk.b = levels;
      chunk.b_step = group_bytes;
    } else {
      chunk.b = reinterpret_cast<const int8_t*>(chunk.panel.groups) +
                chunk.panel.width * chunk.panel.word_bytes;
      chunk.b_step = chunk.panel.group_step;
    }
    multiply(chunk, g);
  });
}

void multiply_unpacked(const LowbitTable& table, const Rows& rows, const Weight& w, int64_t p,
                       float* y, int64_t ldy) {
  GroupJob job{};
  job.rows = rows.count;
  job.pitch = rows.pitch;
  job.row_scale = rows.scale;
  job.row_zero = rows.zero_point;
  job.y = y;
  job.ldy = ldy;
  const bool few = table.gemm_few_groups != nullptr && rows.count <= table.packed_rows;
  const auto gemm = few ? table.gemm_few_groups : table.gemm_u8s8_groups;
  const auto multiply = [&](GroupJob& chunk, int64_t g) {
    chunk.a = rows.codes + g * w.geometry.group_codes;
    gemm(chunk);
  };
  if (w.geometry.stored < 8 && table.unpacks_groups &&
      (w.geometry.group_codes <= kFusedGroup || rows.count <= kRowUnit)) {
    job.unpack = table.unpack_levels;
    for_each_chunk(w, p, w.header.groups, job, multiply);
  } else {
    for_each_unpacked(table, w, p, job, multiply);
  }
}

void multiply_floats(const LowbitTable& table, const float* x, int64_t rows, int64_t ldx,
                     const Weight& w, int64_t p, float* y, int64_t ldy) {
  GroupJob job{};
  job.rows = rows;
  job.ldx = ldx;
  job.y = y;
  job.ldy = ldy;
  job.group = w.geometry.group;
  const auto multiply = [&](GroupJob& chunk, int64_t g) {
    chunk.x = x + g * w.geometry.group;
    chunk.last_group = group_inputs(w.header, g + chunk.panel.count - 1);
    (table.multiply_floats != nullptr ? table.multiply_floats : table.gemm_f32s8_groups)(chunk);
  };
  if (table.multiply_floats != nullptr) {
    const int64_t at_once = groups_at_once(table, w, rows, w.panel(p, 0, 1).group_step);
    for_each_chunk(w, p, at_once, job, multiply);
  } else {
    for_each_unpacked(table, w, p, job, multiply);
  }
}

/// Cuts m rows into bands and calls item(band's first row, last row, panel) for every band and
/// panel; neighbours share a band.
template <class Item>
void for_each_item(int64_t m, int64_t row_bytes, const Weight& w, Item&& item) {
  const int64_t macs = m * w.header.in_features * w.header.out_features;
  const int64_t columns = w.geometry.panels;
  const int64_t threads = max_threads();
  int64_t bands = std::max<int64_t>(1, (m * row_bytes + kRowsBytes - 1) / kRowsBytes);
  if (threads > 1 && macs > kGrain && bands < threads && m >= 28 * threads) bands = threads;
  bands = std::min(bands, m);
  const int64_t items = bands * columns;
  const int64_t grain =
      macs <= 0 ? items : std::max<int64_t>(1, std::min(items, items * kGrain / macs));
  parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t band = i / columns;
      item(m * band / bands, m * (band + 1) / bands, i % columns, i == begin || i % columns == 0);
    }
  });
}

void multiply(const float* x, int64_t m, int64_t ldx, const QuantParams* fixed, const void* packed,
              float* y, int64_t ldy) {
  const Weight w(packed);
  if (m * w.header.out_features == 0) return;
  add_integer_macs(m * w.header.in_features * w.header.out_features);
  const KernelTable& kernels = active_table();
  const LowbitTable& table = kernels.lowbit;
  const bool from_packed =
      w.geometry.stored < 8 &&
      m <= (w.kind == LowbitKind::kLevels ? table.packed_rows_levels : table.packed_rows);
  thread_local Rows rows;
  for_each_item(
      m, w.geometry.total_codes + 64, w, [&](int64_t first, int64_t last, int64_t p, bool fresh) {
        if (fresh) {
          rows = quantize_rows(kernels, x + first * ldx, last - first, ldx, fixed, w, from_packed);
        }
        float* to = y + first * ldy;
        if (from_packed) {
          multiply_packed(table, rows, w, p, to, ldy);
        } else {
          multiply_unpacked(table, rows, w, p, to, ldy);
        }
      });
}

}  // namespace

void linear_lowbit(const float* x, int64_t m, int64_t ldx, const void* packed, float* y,
                   int64_t ldy) {
  multiply(x, m, ldx, nullptr, packed, y, ldy);
}

void linear_lowbit_static(const float* x, int64_t m, int64_t ldx, QuantParams params,
                          const void* packed, float* y, int64_t ldy) {
  multiply(x, m, ldx, &params, packed, y, ldy);
}

void linear_lowbit_float(const float* x, int64_t m, int64_t ldx, const void* packed, float* y,
                         int64_t ldy) {
  const Weight w(packed);
  if (m * w.header.out_features == 0) return;
  const LowbitTable& table = active_table().lowbit;
  for_each_item(
      m, 4 * w.header.in_features + 256, w, [&](int64_t first, int64_t last, int64_t p, bool) {
        multiply_floats(table, x + first * ldx, last - first, ldx, w, p, y + first * ldy, ldy);
      });
}

void embedding_lowbit(const int64_t* indices, int64_t count, const void* packed, float* y) {
  const auto* bytes = static_cast<const uint8_t*>(packed);
  const auto& h = *static_cast<const LowbitHeader*>(packed);
  const LowbitTable& table = active_table().lowbit;
  const int64_t row_bytes = bit_bytes(h.in_features, h.bits);
  // 2^18 values at 0.15 ns are 40 us.
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 18) / (h.in_features + 1));
  parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    RowJob job{};
    job.bits = h.bits;
    job.kind = static_cast<LowbitKind>(h.kind);
    job.count = h.in_features;
    job.group = h.group_size == 0 ? std::max<int64_t>(1, h.in_features) : h.group_size;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = indices[i];
      job.codes = bytes + h.codes_offset + row * row_bytes;
      if (h.group_size == 0) {
        job.wide_scale = reinterpret_cast<const float*>(bytes + h.scale_offset) + row;
      } else {
        job.scale = reinterpret_cast<const uint16_t*>(bytes + h.scale_offset) + row * h.groups;
      }
      job.zero = bytes + h.zero_offset + row * h.groups;
      job.levels = reinterpret_cast<const int8_t*>(bytes + h.levels_offset) +
                   (row / kLowbitColumns << h.bits);
      job.y = y + i * h.in_features;
      table.dequantize_row(job);
    }
  });
}

}  // namespace octavo

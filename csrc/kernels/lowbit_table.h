// Micro-kernels of products with packed low-bit weights and of look-ups in packed rows, and the
// plain structs that cross from the driver (lowbit.cpp) to them. One thread, no allocation; memory
// orders are in lowbit_layout.h, and csrc/README.md says what every result is.
#pragma once

#include "lowbit_layout.h"

namespace octavo {

/// Some groups of one panel, as packed in memory.
struct LowbitPanel {
  const uint8_t* groups;            // words of the first group
  int64_t group_step;               // bytes from one group to the next
  int64_t count;                    // of groups
  int64_t group_codes, last_codes;  // padded: of every group but the last, and of that
  int64_t width;                    // columns in memory: 16, 32, 48 or 64
  int64_t n;                        // columns that exist
  int32_t stored;                   // bits
  LowbitKind kind;
  bool wide;             // words of 8 bytes
  int64_t word_bytes;    // from a group's start to its codes, for each column
  int32_t zero;          // kSymmetric: 2^(bits - 1); kLevels: 128; kAffine: 1
  const int8_t* levels;  // kLevels: 2^stored of them
  int64_t ahead;         // prefetch distance in bytes
  int64_t ahead_l2;      // the same into L2; 0: no such prefetches
};

/// Rows times some groups of a panel straight from packed codes, stored 2, 3 or 4. With a[k] = code
/// - 128 of the activations (0 where padded) and Z the row's zero point:
///
///   S[g] = sum of (a + 128 - Z) * level, f = fmaf(float(S[g]), scale[g], f) for every g,
///   y = fmaf(f, row_scale, bias)
///
/// f begins at 0 (first) or at acc, and ends as y (last) or in acc.
struct PackedJob {
  LowbitPanel panel;
  bool first, last;
  float* acc;  // [rows][64], 64-byte aligned
  const int8_t* a;
  int64_t pitch;  // bytes
  int64_t rows;
  /// The sum of a over the inputs of a group that exist, times -2^(bits - 1) (kSymmetric), -128
  /// (kLevels, as levels + 128 are unsigned) or -1 (kAffine): [rows][>= panel.count].
  const int32_t* a_start;
  int64_t a_start_pitch;
  const float* row_scale;
  const int32_t* row_zero;
  const float* bias;  // [n]
  float* y;
  int64_t ldy;
};

/// Rows times levels already unpacked: group g at b + g * b_step, int8 [codes / 4][width][4].
/// Activations are u8 codes, 0 where padded; S[g] = sum of code * level - Z * sum of levels.
/// Sums over groups begin at 0 (first) or at acc, and end as y (last) or in acc.
struct GroupJob {
  LowbitPanel panel;  // its words are read, its codes are not
  const int8_t* b;
  int64_t b_step;
  // gemm_u8s8_groups that unpacks_groups: if not null, b is null and the kernel calls it.
  void (*unpack)(const LowbitPanel& panel, int8_t* levels);
  bool first, last;
  float* acc;  // [rows][64], 64-byte aligned
  int64_t rows;
  const float* bias;
  float* y;
  int64_t ldy;

  // gemm_u8s8_groups
  const uint8_t* a;  // memory of whole kRowUnits of rows
  int64_t pitch;
  const float* row_scale;
  const int32_t* row_zero;

  // gemm_f32s8_groups: p = 0, p = fmaf(x[k], float(level), p) for every input of a group in
  // ascending order, f = fmaf(p, scale[g], f), y = f + bias.
  const float* x;  // of the first group's first input
  int64_t ldx;
  int64_t group, last_group;  // inputs that exist: of every group but the last, and of that
};

/// One row of a look-up table: y[i] = float(level) * scale of its group.
struct RowJob {
  const uint8_t* codes;  // LSB-first bit stream
  int32_t bits;
  LowbitKind kind;
  int64_t count, group;   // inputs, and those that share a scale
  const uint16_t* scale;  // bfloat16, a group; or one float:
  const float* wide_scale;
  const uint8_t* zero;   // kAffine, a group
  const int8_t* levels;  // kLevels, 2^bits
  float* y;
};

/// Rows of activations have memory up to a multiple of these: tiles load so many.
inline constexpr int64_t kRowUnit = 16;

/// The most padded codes of a group that kernels unpack themselves, for up to kRowUnit rows; with
/// more rows they unpack groups up to this length only.
inline constexpr int64_t kFusedGroup = 256;

struct LowbitTable {
  bool unpacks_groups;  // whether gemm_u8s8_groups unpacks them: see kFusedGroup
  int64_t tile_rows;  // so many rows take each code once: a panel is streamed, not cut into chunks
  /// The most rows that go through multiply_packed and multiply_packed_levels; more rows are
  /// multiplied with unpacked levels. 0: none.
  int64_t packed_rows, packed_rows_levels;
  void (*multiply_packed)(const PackedJob& job);  // kSymmetric, kAffine
  void (*multiply_packed_levels)(const PackedJob& job);
  /// Levels of every group, one after the other, in GroupJob's order.
  void (*unpack_levels)(const LowbitPanel& panel, int8_t* levels);
  void (*gemm_u8s8_groups)(const GroupJob& job);
  void (*gemm_few_groups)(const GroupJob& job);  // null, or the same for up to packed_rows rows
  void (*gemm_f32s8_groups)(const GroupJob& job);
  /// gemm_f32s8_groups directly from packed codes (b is null); null: levels are unpacked first.
  void (*multiply_floats)(const GroupJob& job);
  /// Flips codes to signed ones (XOR 128) in place and returns their sum.
  int32_t (*flip_u8_s8)(uint8_t* codes, int64_t count);
  void (*dequantize_row)(const RowJob& job);
};

}  // namespace octavo

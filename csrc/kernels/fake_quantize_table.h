// Micro-kernels of fake quantization: runs of values that share a step, rows of columns with a step
// each, level tables, and their gradients. Included by kernel_table.h; called by fake_quantize.cpp,
// which owns blocking and threads. One thread, no allocation, no reads or writes outside the runs
// named. All assume the default rounding mode and honoured denormals: parallel_for sets both.
#pragma once

#include <cstdint>

#include "types.h"

namespace octavo {

/// Brain floating point and half precision, as bits.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

/// With v = relu ? max(x, 0) : x and t = v * inverse, in float32:
///   n = rne(min(max(t, lo), hi)), y = n * scale, +0 where n = 0; NaN stays NaN.
/// The code lies inside where in_lo <= t <= in_hi, that is where rne(t) lies in [qmin, qmax] - z.
struct FakeRule {
  float inverse, scale;  // float(1 / scale)
  float lo, hi;          // qmin - z and qmax - z, integers in [-510, 510]
  float in_lo, in_hi;
  bool relu;
};

/// The same, one rule a column. Arrays are padded to a multiple of 16 entries.
struct FakeColumns {
  const float *inverse, *scale, *lo, *hi, *in_lo, *in_hi;
  bool relu;
};

/// Levels in ascending order; t has as nearest level[i], i being the number of middles below t.
struct LevelTable {
  int32_t count;      // 2..256
  float level[256];   // entries from count on repeat the last
  float middle[256];  // halfway between level[i] and level[i + 1]; from count - 1 on +inf
};
struct LevelRule {
  const LevelTable* table;
  float inverse, scale;
  bool clip;  // whether the gradient to x is 0 outside level[0] .. level[count - 1]
};

/// Sums of one run in sixteen lanes, from 0: value i is added to lane i % 16, in ascending order.
struct FakeSums {
  double scale[16], zero[16];
};

/// Kernels for one type of values. Masks hold one bit a value, bit i % 8 of byte i / 8, in
/// ceil(count / 8) bytes, unused bits 0; a bit is set where the gradient to x passes: inside and,
/// with relu, x > 0. Outputs may alias an input exactly.
struct FakeKernels {
  /// mask may be null. stream: y is 64-byte aligned and best written past the caches.
  void (*run)(const void* x, int64_t count, const FakeRule& rule, void* y, uint8_t* mask,
              bool stream);
  /// The same without a mask; returns whether all values are finite.
  bool (*watched)(const void* x, int64_t count, const FakeRule& rule, void* y, bool stream);
  /// Rows follow one another; every row of the mask starts at a byte. stream: the same, of every
  /// row of y.
  void (*columns)(const void* x, int64_t rows, int64_t columns, const FakeColumns& rules, void* y,
                  uint8_t* mask, bool stream);
  /// dx = dy where the bit is set, else 0.
  void (*masked)(const void* dy, int64_t count, const uint8_t* mask, void* dx, bool stream);
  /// dx = dy where the gradient passes, else 0. sums->scale: dy * (n - t) inside and dy * n
  /// elsewhere; sums->zero: dy where t < in_lo or t > in_hi. Products in float32.
  void (*learned)(const void* dy, const void* x, int64_t count, const FakeRule& rule, void* dx,
                  FakeSums* sums, bool stream);
  /// The same, added row by row to one sum a column; to_zero may be null.
  void (*learned_columns)(const void* dy, const void* x, int64_t rows, int64_t columns,
                          const FakeColumns& rules, void* dx, double* to_scale, double* to_zero);
  /// dx = dy where 0 < x < top, else 0; sums->scale: dy where x >= top.
  void (*clipped)(const void* dy, const void* x, int64_t count, float top, void* dx,
                  FakeSums* sums);
  /// y = level * scale; NaN stays NaN.
  void (*levels)(const void* x, int64_t count, const LevelRule& rule, void* y);
  /// With t = x * inverse, sums->scale: dy * (level - t) inside the table's range and dy * level
  /// elsewhere. dx, unless null: dy, or where rule.clip and t lies outside, 0.
  void (*levels_gradient)(const void* dy, const void* x, int64_t count, const LevelRule& rule,
                          void* dx, FakeSums* sums);
  /// Exact.
  void (*widen)(const void* x, int64_t count, float* y);
};

struct FakeQuantizeTable {
  FakeKernels of[3];  // by FloatType
};

}  // namespace octavo

// Micro-kernels that are not products: quantize, ranges, elementwise, pooling. Included by
// kernel_table.h; called by quantize.cpp, minmax.cpp, elementwise.cpp and pool.cpp, which own
// blocking and threads, and by the dynamic products for their rows. One thread, no allocation, no
// reads or writes outside the runs named. All assume the default rounding mode and honoured
// denormals: parallel_for sets both.
#pragma once

#include "types.h"

namespace octavo {

/// q = int(rne(min(max(x * inverse, lo), hi))) + zero_point, product in float32; NaN gives lo.
/// For u8 codes lo = -zero_point and hi = max_code - zero_point; for s8 codes zero_point = 0.
struct QuantizeRule {
  float inverse;  // float(1 / scale)
  float lo, hi;   // integers in [-255, 255]
  int32_t zero_point;
};

/// A row of pixels of `channels` codes each, `in_step` and `out_step` bytes apart.
struct PixelRun {
  int64_t pixels, channels;
  int64_t in_step, out_step;
};

/// Taps of one pooling window: `rows` x `cols` pixels, steps in bytes. rows = 0 or cols = 0: no
/// tap.
struct Window {
  int64_t rows, cols;
  int64_t row_step, col_step;
};

/// y = int(rne(min(max(fmaf(float(a), ma, fmaf(float(b), mb, offset)), lo), hi)))
struct AddRule {
  float ma, mb, offset, lo, hi;
};

/// y = int(rne(min(max(fmaf(float((a - za) * (b - zb)), m, offset), lo), hi)))
struct MultiplyRule {
  int32_t za, zb;
  float m, offset, lo, hi;
};

/// y = int(rne(min(max(fmaf(float(sum + start), m, offset), lo), hi)))
struct AverageRule {
  int32_t start;  // -zero_point * number of taps
  float m, offset, lo, hi;
};

/// Largest number of taps of average_window_u8: 255 * 2^23 < 2^31, so sums are exact in int32.
inline constexpr int64_t kMaxAverageTaps = int64_t{1} << 23;

/// 16 output channels of a gather, each from one of up to kGatherWindows windows of 16 input
/// channels.
inline constexpr int64_t kGatherWindows = 8;
struct GatherBlock {
  int64_t to;                         // first output channel
  int64_t windows;                    // how many are used
  int64_t first[kGatherWindows];      // first input channel of each
  uint8_t index[kGatherWindows][16];  // channel within the window, or kNotHere
  uint8_t fill[16];                   // the code where no window gives one, else 0
  static constexpr uint8_t kNotHere = 0x80;
};

/// Columns that minmax_columns_f32 takes at once.
inline constexpr int64_t kMinMaxColumns = 256;

/// Weights that share a scale: the sum of (|x - q * scale| / unit)^2.4, each times its importance
/// if there are some, with q = rne(min(max(x * (1 / scale), low), high)). Sums of up to
/// kClipErrorBlock values are taken in float32, sixteen at a time, those in double.
struct ClipErrorJob {
  const float* x;
  const float* importance;  // or null
  int64_t count;
  float scale, unit, low, high;
};
inline constexpr int64_t kClipErrorBlock = 512;

/// One time step of one sequence. Gates follow one another, `width` values each: x from the input,
/// h from the hidden state, biases included. LSTM (i, f, g, o): c' = sigmoid(f) c + sigmoid(i)
/// tanh(g), h' = sigmoid(o) tanh(c'); GRU (r, z, n): n' = tanh(x_n + sigmoid(r) h_n), h' = n' +
/// sigmoid(z) (state - n'); else h' = tanh or max(., 0) of x + h.
struct RecurrentCell {
  RecurrentMode mode;
  int64_t width;
  const float *x, *h;
  const float* state;      // c of LSTM, h of GRU
  float *next_h, *next_c;  // may be the state; next_c for LSTM only
};

/// In `lo` and `hi` of the rules stand codes in [0, 255]. Outputs may alias an input exactly,
/// except where the layouts differ (planes, windows).
struct ElementTable {
  // ---- quantize ----
  void (*quantize_f32_u8)(const float* x, int64_t count, const QuantizeRule& rule, uint8_t* q);
  void (*quantize_f32_s8)(const float* x, int64_t count, const QuantizeRule& rule, int8_t* q);
  /// Symmetric codes of one row with one inverse scale a column.
  void (*quantize_columns_f32_s8)(const float* x, int64_t columns, const float* inverse, float lo,
                                  float hi, int8_t* q);
  /// Planes to pixels: q[p * pixel_pitch + c] is the code of x[c * plane_stride + p].
  void (*quantize_planes_f32_u8)(const float* x, int64_t plane_stride, int64_t pixels,
                                 int64_t channels, const QuantizeRule& rule, uint8_t* q,
                                 int64_t pixel_pitch);
  /// y = scale * float(q - zero_point)
  void (*dequantize_u8_f32)(const uint8_t* q, int64_t count, float scale, int32_t zero_point,
                            float* y);
  /// Pixels to planes: y[c * plane_stride + p] is the value of q[p * pixel_pitch + c].
  void (*dequantize_planes_u8_f32)(const uint8_t* q, int64_t pixel_pitch, int64_t pixels,
                                   int64_t channels, float scale, int32_t zero_point, float* y,
                                   int64_t plane_stride);

  // ---- minmax: results widen what the caller put there; the sign of a zero is unspecified ----
  /// Range without NaN; infinities count.
  void (*range_f32)(const float* x, int64_t count, float* min, float* max);
  /// Range of the finite values; adds the number of the others to *non_finite.
  void (*minmax_f32)(const float* x, int64_t count, float* min, float* max, int64_t* non_finite);
  /// The same for each of at most kMinMaxColumns columns of a matrix.
  void (*minmax_columns_f32)(const float* x, int64_t rows, int64_t row_stride, int64_t columns,
                             float* min, float* max, int64_t* non_finite);
  /// Adds counts of floor(x / 2^exponent) - first; values outside go to the end bins, values that
  /// are not finite nowhere. exponent in [-800, 800], bin_count < 2^31.
  void (*histogram_f32)(const float* x, int64_t count, int32_t exponent, int64_t first,
                        int64_t bin_count, int64_t* bins);
  double (*clip_error_f32)(const ClipErrorJob& job);

  // ---- recurrent ----
  void (*recurrent_cell_f32)(const RecurrentCell& cell);

  // ---- elementwise ----
  void (*add_u8u8_u8)(const uint8_t* a, const uint8_t* b, int64_t count, const AddRule& rule,
                      uint8_t* out);
  void (*multiply_u8u8_u8)(const uint8_t* a, const uint8_t* b, int64_t count,
                           const MultiplyRule& rule, uint8_t* out);
  /// Every pixel of a times the same b[channels].
  void (*multiply_pixels_u8u8_u8)(const uint8_t* a, const uint8_t* b, const PixelRun& run,
                                  const MultiplyRule& rule, uint8_t* out);
  /// y = int(rne(min(max(fmaf(float(x), m[c], offset[c]), lo), hi)))
  void (*affine_pixels_u8_u8)(const uint8_t* x, const PixelRun& run, const float* m,
                              const float* offset, float lo, float hi, uint8_t* out);
  void (*table_u8_u8)(const uint8_t* x, int64_t count, const uint8_t* table, uint8_t* out);
  /// out[c] = table[256 * c + x[c]] for every pixel.
  void (*channel_table_u8_u8)(const uint8_t* x, const PixelRun& run, const uint8_t* table,
                              uint8_t* out);

  // ---- layout ----
  /// Every pixel's channels as the blocks say. run.channels is not used; x and out do not overlap.
  void (*gather_pixels_u8)(const uint8_t* x, const PixelRun& run, const GatherBlock* blocks,
                           int64_t block_count, uint8_t* out);

  // ---- pool
  // Window i of the run starts at x + i * in_step; without taps it gives code 0 (max) or sum 0.
  void (*max_windows_u8)(const uint8_t* x, const Window& window, const PixelRun& run, uint8_t* out);
  void (*average_windows_u8)(const uint8_t* x, const Window& window, const PixelRun& run,
                             const AverageRule& rule, uint8_t* out);
};

}  // namespace octavo

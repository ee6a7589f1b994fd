// Micro-kernels of integer products of one ISA, and the plain structs that cross from the drivers
// (product_dense.cpp, product_depthwise.cpp, linear_dynamic.cpp) to them. A dense job is one panel
// of weight columns times a grid of output pixels; the kernel cuts the grid into tiles of its own
// shape. One thread, no allocation; reads stay within kSlack of activation buffers.
#pragma once

#include "types.h"

namespace octavo {

/// One panel, or several where joins_panels, times a grid of h x w output pixels ("rows" of the
/// product).
///
/// For run r, output pixel (y, x) takes `run_bytes` activations from a + y * a_row_pitch + x *
/// a_pixel_pitch + run_offset[r]; run r of the panel begins at panel_offset(r * run_bytes, 0) from
/// b. run_bytes is padded to the layout's k_unit; the padding of weights is zero, that of
/// activations is whatever follows in memory. runs may be 0 (everything in the halo). Arrays of
/// channel parameters have n entries and no padding.
struct GemmJob {
  const uint8_t* a;
  int64_t a_row_pitch, a_pixel_pitch;  // bytes
  int64_t h, w;

  const int64_t* run_offset;
  int64_t runs, run_bytes;
  // Only in kAmx, else 0: see PanelGeometry. `runs` are then kernel rows of activations, whose
  // run_bytes have no padding; the kernel joins them as the panel does.
  int64_t joined_rows;

  const int8_t* b;
  int64_t width;  // columns in memory
  int64_t depth;  // codes of a column in memory: of all the panel's runs
  int64_t n;      // columns that exist, 1 <= n <= width

  bool narrow;  // all weights lie in -64..63

  // Null, or what GemmTable::split_panel made of the panel that b points into: all its runs,
  // of which the job's begin with run first_run.
  uint8_t* split;
  int64_t first_run;

  const int32_t* start;  // gemm_u8s8_u8, gemm_u8s8_f32: types.h, Epilogue
  const float* scale;
  const float* offset;
  float lo, hi;

  // gemm_u8s8_u8. residual may be null. Pitches in bytes.
  uint8_t* out;
  int64_t out_row_pitch, out_pixel_pitch;
  const uint8_t* residual;
  int64_t residual_row_pitch, residual_pixel_pitch;
  float residual_scale;
  // The code of the pixels between the end of a row and the beginning of the next (the halo
  // column): a kernel that writes beyond the end of a row may write n columns there if it leaves
  // this code in them. -1: it must not write there.
  int32_t gap_code;

  // gemm_u8s8_f32, gemm_u8s8_rows: pitches in elements, channels contiguous.
  float* out_f32;
  int64_t f32_row_pitch, f32_pixel_pitch;

  // gemm_u8s8_rows (h = 1): pixel x has its own scale and zero point:
  // y = fmaf(float(sum - row_zero[x] * colsum[c]), row_scale[x] * scale[c], offset[c])
  const float* row_scale;
  const int32_t* row_zero;
  const int32_t* colsum;
};

/// A grid of h x w output pixels of a depthwise convolution, 1 <= channels <= 64.
///
/// Tap (i, j) of output (y, x) is at a + (y * stride_h + i * dilation_h) * a_row_pitch +
/// (x * stride_w + j * dilation_w) * a_pixel_pitch. Weights: panel.h, depthwise_offset. Parameters
/// as in GemmJob.
struct DepthwiseJob {
  const uint8_t* a;
  int64_t a_row_pitch, a_pixel_pitch;
  int64_t h, w, channels;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  const int8_t* weights;
  const int32_t* start;
  const float* scale;
  const float* offset;
  float lo, hi;

  uint8_t* out;
  int64_t out_row_pitch, out_pixel_pitch;
  const uint8_t* residual;
  int64_t residual_row_pitch, residual_pixel_pitch;
  float residual_scale;

  float* out_f32;
  int64_t f32_row_pitch, f32_pixel_pitch;

  uint8_t* scratch;  // 64-byte aligned, depthwise_scratch() bytes
};

/// Columns of interleaved taps that a depthwise job may hold in its scratch: 16 KiB, half of the
/// smallest L1, unless one output pixel alone needs more. A column is one row group of 64 channels:
/// 256 bytes.
inline constexpr int64_t kDepthwiseColumns = 64;
[[maybe_unused]] static inline int64_t depthwise_columns(int64_t kernel_h, int64_t kernel_w,
                                                         int64_t dilation_w) {
  const int64_t least = (kernel_h + 3) / 4 * ((kernel_w - 1) * dilation_w + 1);
  return least > kDepthwiseColumns ? least : kDepthwiseColumns;
}
/// Bytes of the scratch: the columns, and room for weights in a wider form (8 vectors of 64 bytes a
/// tap column).
[[maybe_unused]] static inline int64_t depthwise_scratch(int64_t kernel_h, int64_t kernel_w,
                                                         int64_t dilation_w) {
  return depthwise_columns(kernel_h, kernel_w, dilation_w) * 256 +
         (kernel_h + 3) / 4 * kernel_w * 512;
}

struct GemmTable {
  PanelLayout layout;
  bool joins_panels;  // consecutive panels of a block are as one wider panel, and a job takes it
  // The number of images of a region that run together is chosen so that the largest value has
  // about this size: small values stay in cache, large ones read weights less often.
  int64_t chunk_bytes;

  // Null, or writes a second form of a panel of k codes a column, split_bytes() bytes, with which
  // jobs of many pixels and weights of 8 bits are faster. For one thread only: jobs write into that
  // form too.
  void (*split_panel)(const int8_t* b, int64_t width, int64_t k, uint8_t* to);
  int64_t (*split_bytes)(int64_t width, int64_t k);

  void (*gemm_u8s8_u8)(const GemmJob& job);
  void (*gemm_u8s8_f32)(const GemmJob& job);
  void (*gemm_u8s8_rows)(const GemmJob& job);

  void (*depthwise_u8s8_u8)(const DepthwiseJob& job);
  void (*depthwise_u8s8_f32)(const DepthwiseJob& job);
};

}  // namespace octavo

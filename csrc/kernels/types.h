// Plain values that cross the borders between ops, drivers and tiles: views of memory and the
// parameters of one layer. No Torch, no allocation, no standard containers: ISA folders include
// this file, so everything here is a struct, a constant or a function with internal linkage.
#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo {

/// Types of float tensors, in the order of FakeQuantizeTable.
enum class FloatType : int32_t { kF32, kBf16, kF16 };

/// Quantized activations: u8 codes in NHWC order with a halo. real = scale * (q - zero_point).
///
/// `data` points to image 0, row 0, column 0, channel 0. Around every image there are `halo`
/// readable rows above and below and `halo` readable pixels left and right; the right halo of a row
/// and the left halo of the next row are the same memory, so a dense view has
///   pixel_pitch = c, row_pitch = (w + halo) * c, image_pitch = (h + 2 * halo) * row_pitch
/// (plus alignment). Convolution reads the halo, so its producer's driver fills it with the zero
/// point. A view of some channels of a wider image has pixel_pitch > c. Matrices ("rows", [.., C])
/// are images with n = 1, h = 1, w = rows, halo = 0. All pitches are in bytes = elements.
struct Image {
  uint8_t* data = nullptr;
  int64_t n = 0, h = 0, w = 0, c = 0;
  int64_t halo = 0;
  int64_t pixel_pitch = 0, row_pitch = 0, image_pitch = 0;
};

/// Float activations with any strides (elements), logically [n, c, h, w].
struct FloatImage {
  float* data = nullptr;
  int64_t n = 0, h = 0, w = 0, c = 0;
  int64_t stride_n = 0, stride_h = 0, stride_w = 0, stride_c = 0;
};

/// The smallest scale that octavo uses: the smallest normal float32, whose inverse is finite.
/// Values whose range is too small for it become zero. The same constant is in
/// python/octavo/numerics/scheme.py.
inline constexpr float kMinScale = 0x1p-126f;

/// Every activation buffer has so many readable bytes before its first and after its last element,
/// so that tiles may load whole vectors and padded K runs. These bytes may hold anything: the
/// weights that they meet are zero.
inline constexpr int64_t kSlack = 4096;

/// Affine parameters of one tensor. scale is a normal number > 0; codes lie in [0, max_code].
struct QuantParams {
  float scale = 1.0f;
  int32_t zero_point = 0;
  int32_t max_code = 255;
};

/// Recurrent networks: what a time step computes (element_table.h).
enum class RecurrentMode : int32_t { kLstm, kGru, kTanh, kRelu };
constexpr int64_t gates_of(RecurrentMode mode) {
  return mode == RecurrentMode::kLstm ? 4 : mode == RecurrentMode::kGru ? 3 : 1;
}

/// Shape and steps of one convolution. Padding below and right follows from the output's size.
struct ConvGeometry {
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_top = 0, pad_left = 0;
  int64_t dilation_h = 1, dilation_w = 1;
};

/// What a layer does with an exact sum. For output channel c (all arrays have one entry a channel):
///   u8 out:  y = int(rne(min(max(v, lo), hi))),  v = fmaf(float(start[c] + sum), scale[c],
///   offset[c]),
///            then, with a residual r: v = fmaf(float(r), residual_scale, v) before the clamp
///   f32 out: y = min(max(fmaf(float(start[c] + sum), scale[c], offset[c]), lo), hi)
/// start holds -zero_point_in * column sum; lo and hi are codes (u8) or reals (f32, may be
/// infinite). zero_point is zero_point_in, or -1 where the caller does not know it: with 0,
/// products with the halo are skipped.
struct Epilogue {
  const int32_t* start = nullptr;
  const float* scale = nullptr;
  const float* offset = nullptr;
  float residual_scale = 0.0f;
  float lo = 0.0f, hi = 255.0f;
  int32_t zero_point = -1;
};

/// Memory order of a weight panel; the tag of `PanelHeader`.
enum class PanelLayout : int32_t { kScalar = 0, kVnni = 1, kAmx = 2, kNeon = 3 };

/// First 128 bytes of a packed weight ("panel"), followed by its sections at 64-byte aligned
/// offsets. One tensor per layer: int8 weights in the layout's order, column sums, weight scales,
/// bias.
struct PanelHeader {
  uint32_t magic;     // kPanelMagic
  int32_t layout;     // PanelLayout
  int32_t depthwise;  // 1: one input and one output channel a group, weights [taps][channel]-like
  int32_t bits;       // of the canonical codes, 2..8
  int64_t out_channels;  // total
  int64_t in_channels;   // total (groups * channels per group)
  int64_t groups;        // of the float layer
  int64_t kernel_h, kernel_w;
  int64_t blocks;         // groups after merging: each block is a dense product
  int64_t weight_offset;  // bytes from the header; so are the next three
  int64_t colsum_offset;  // int32[out_channels]: sum over the codes of a channel
  int64_t scale_offset;   // float[out_channels]
  int64_t bias_offset;    // float[out_channels], zeros where the layer has none
  int64_t total_bytes;
};
inline constexpr uint32_t kPanelMagic = 0x4f435456;  // "OCTV"
static_assert(sizeof(PanelHeader) <= 128);

}  // namespace octavo

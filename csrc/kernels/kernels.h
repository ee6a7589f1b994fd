// Public kernel functions: what ops/ and region/ may call, with their contracts. Every function is
// a driver: it blocks, threads (parallel.h) and picks micro-kernels, all from one table a call:
// that of the panel it is given (table_for), or active_table(). All results are bit-identical for
// every ISA, thread count, batch composition and memory layout; isa/scalar is the specification.
// Preconditions are the caller's (debug assertions only). Sizes may be 0.
#pragma once

#include <cstdint>

#include "lowbit_layout.h"
#include "types.h"

namespace octavo {

// ---- quantize.cpp -------------------------------------------------------------------------------

/// q = int(rne(min(max(x * r, -z), max_code - z))) + z with r = float(1 / scale); NaN gives code 0.
void quantize(const float* x, int64_t count, QuantParams p, uint8_t* q);
/// Signed codes with one scale per channel (symmetric): x is [outer, channels, inner] contiguous,
/// q = int(rne(min(max(x * float(1 / scale[c]), qmin), qmax))); NaN gives qmin.
void quantize_per_channel(const float* x, int64_t outer, int64_t channels, int64_t inner,
                          const float* scale, int32_t qmin, int32_t qmax, int8_t* q);
/// y = scale * float(q - z)
void dequantize(const uint8_t* q, int64_t count, QuantParams p, float* y);

/// Float image (any strides) to codes; writes the interior of dst, not its halo.
void quantize_image(const FloatImage& src, QuantParams p, const Image& dst);
/// Codes to a float image of any strides.
void dequantize_image(const Image& src, QuantParams p, const FloatImage& dst);
/// Copies a float image between layouts.
void copy_image(const FloatImage& src, const FloatImage& dst);

/// Affine u8 parameters of the range [min, max] widened to hold 0, zero exactly representable:
/// scale = max((max - min) / max_code, kMinScale), z = clamp(rne(-min / scale), 0, max_code).
/// A non-finite range counts as the largest finite one. The only rule for dynamic scales.
QuantParams params_of_range(float min, float max, int32_t max_code);
/// Dynamic parameters per sample (image n) of src; `params` has src.n entries. NaN is ignored.
void dynamic_params(const FloatImage& src, int32_t max_code, QuantParams* params);
/// quantize_image with one QuantParams a sample.
void quantize_image_per_sample(const FloatImage& src, const QuantParams* params, const Image& dst);

/// Fills the halo of every image with `code`. No effect for halo 0.
void fill_halo(const Image& image, uint8_t code);

// ---- minmax.cpp ---------------------------------------------------------------------------------

/// Smallest and largest of the finite values, and how many are not finite. Empty: min = +inf, max =
/// -inf.
struct MinMax {
  float min, max;
  int64_t non_finite;
};
MinMax minmax(const float* x, int64_t count);
/// The same for each channel of [outer, channels, inner]; out has `channels` entries.
void minmax_per_channel(const float* x, int64_t outer, int64_t channels, int64_t inner,
                        MinMax* out);
/// Adds counts of floor(x / 2^exponent) - first to bins[0 .. bin_count); values outside go to the
/// end bins, values that are not finite are skipped.
void histogram(const float* x, int64_t count, int32_t exponent, int64_t first, int64_t bin_count,
               int64_t* bins);

// ---- clip_error.cpp -----------------------------------------------------------------------------

/// Rows of weights [rows, columns], each rounded with `scales` scales: see ClipErrorJob.
struct ClipErrors {
  const float* x;
  const float* importance;  // [rows, columns] or null
  int64_t rows, columns, scales;
  const float* scale;              // [rows, scales]
  const float *unit, *low, *high;  // [rows]
};
/// error: [rows, scales].
void clip_error(const ClipErrors& errors, double* error);

// ---- fake_quantize.cpp --------------------------------------------------------------------------

/// How values that follow one another in memory, [outer, channels, inner], share their steps: one
/// step for every `group` consecutive inner values of a channel (group = inner: one a channel; the
/// last group may be shorter), whatever the outer index. With groups outer = 1. Parameters are
/// [channels, groups_of(steps)]. scale: used as max(|scale|, kMinScale) where learned, else finite,
/// normal and > 0. zero_point: nullptr for 0; used as rne clamped to [qmin, qmax] where learned,
/// else integers in [qmin, qmax]. qmin <= z <= qmax, both in [-128, 255].
struct FakeSteps {
  int64_t outer, channels, inner, group;
  int32_t qmin, qmax;
  bool relu, learned;
  const float *scale, *zero_point;
};
int64_t groups_of(const FakeSteps& steps);
/// Masks are rows of bits, each row starting at a byte: `row` values in each of `rows`.
struct MaskShape {
  int64_t rows, row;
};
MaskShape mask_shape(const FakeSteps& steps);

/// y = (q - z) * scale with q = clamp(rne(v * float(1 / scale)) + z, qmin, qmax), v = relu ?
/// max(x, 0) : x; NaN stays NaN; never -0. mask, unless null: where the gradient to x passes, that
/// is where the unclamped q lies in [qmin, qmax] and, with relu, x > 0. y may be x.
void fake_quantize(FloatType type, const void* x, const FakeSteps& steps, void* y, uint8_t* mask);
/// The same for one step in all, without a mask; returns whether every x is finite. y is not x.
bool fake_quantize_watched(FloatType type, const void* x, const FakeSteps& steps, void* y);
/// dx = dy where the mask's bit is set, else 0. dx may be dy.
void fake_quantize_backward(FloatType type, const void* dy, const uint8_t* mask, MaskShape shape,
                            void* dx);
/// dx as by the mask. With t = v * float(1 / s): to_scale = grad_scale * sign(scale) * sum of dy *
/// (q - z - t) inside and dy * (q - z) elsewhere; to_zero (null where zero_point is) = -grad_scale
/// * s * sum of dy where q was clamped. Sums are double, in a fixed order of blocks.
void fake_quantize_learned_backward(FloatType type, const void* dy, const void* x,
                                    const FakeSteps& steps, double grad_scale, void* dx,
                                    float* to_scale, float* to_zero);
/// Codes q - qmin of values that fake_quantize gave with these steps (relu aside), a quarter of
/// their size; qmax - qmin <= 255. Returns whether fake_quantize_values gives back the same bits:
/// not where a value is NaN or infinite, or a scale is beyond 2^120.
bool fake_quantize_codes(const float* y, const FakeSteps& steps, uint8_t* codes);
/// y = (code + qmin - z) * scale
void fake_quantize_values(const uint8_t* codes, const FakeSteps& steps, float* y);
/// Returns sign(alpha) * sum of dy where x >= |alpha|; dx = dy where 0 < x < |alpha|, else 0.
float fake_quantize_clipped_backward(FloatType type, const void* dy, const void* x, int64_t count,
                                     float alpha, void* dx);
/// y = level * scale, the level being the nearest to x * float(1 / scale), the lower of two.
/// levels: ascending, [tables, count] with one table for 64 consecutive channels, or one for all.
/// outer = 1; of the steps qmin, qmax, relu and zero_point are not used.
struct FakeLevels {
  const int8_t* levels;
  int64_t tables, count;
  bool one_scale;  // scale has one entry, for all channels; group = inner
};
void fake_quantize_levels(FloatType type, const void* x, const FakeSteps& steps,
                          const FakeLevels& levels, void* y);
/// to_scale as for learned steps, with the level for q - z and inside = within the table's range.
/// dx, unless null: dy where inside, else 0.
void fake_quantize_levels_backward(FloatType type, const void* dy, const void* x,
                                   const FakeSteps& steps, const FakeLevels& levels,
                                   double grad_scale, void* dx, float* to_scale);

// ---- observe.cpp --------------------------------------------------------------------------------

/// y[i] = x[first + i], exactly.
void widen(FloatType type, const void* x, int64_t first, int64_t count, float* y);
/// Which steps a range gives.
struct RangeRule {
  int32_t qmin, qmax;
  bool symmetric;
};
/// minmax_per_channel for any type of values; with relu of max(x, 0).
void observed_ranges(FloatType type, const void* x, int64_t outer, int64_t channels, int64_t inner,
                     bool relu, MinMax* out);
/// Values that `shrunk` looks at.
inline constexpr int64_t kRangeSample = int64_t{1} << 12;
/// The range times that of 1.00, 0.95 ... 0.20 whose steps give at most kRangeSample values (of
/// max(x, 0) with relu; those that are not finite count as 0) the smallest squared error; the
/// largest of equal ones.
MinMax shrunk(const float* sample, int64_t count, bool relu, const RangeRule& rule, MinMax range);
/// Moves the range [2, channels] (minima, then maxima): the first is taken as it is, later ones by
/// range += momentum * (now - range). Channels without finite values stay.
void move_range(const MinMax* now, int64_t channels, float momentum, float* range);
/// Scale and zero point of each range widened to hold 0: scale = max((max - min) / (qmax - qmin),
/// kMinScale), z = clamp(rne(-min / scale) + qmin, qmin, qmax); symmetric: scale = max(max(-min,
/// max) / qmax, kMinScale), z = 0.
void steps_of_ranges(const float* range, int64_t channels, const RangeRule& rule, float* scale,
                     float* zero_point);

// ---- pack.cpp -----------------------------------------------------------------------------------

/// What a float layer looks like before packing. Codes are in torch's weight order
/// [out_channels, in_channels / groups, kernel_h, kernel_w] (linear: kernel 1x1).
struct WeightShape {
  int64_t out_channels, in_channels, groups, kernel_h, kernel_w;
  int32_t bits;
};
/// The header of the shape's panel in the active ISA's layout (layout_of): how many bytes
/// pack_panel writes, total_bytes, which is -1 where sizes do not fit.
PanelHeader panel_header(const WeightShape& shape);
/// Packs codes, scale[out_channels] and bias[out_channels] (or nullptr) as `header` says, one that
/// panel_header gave. panel: 64-byte aligned.
void pack_panel(const PanelHeader& header, const int8_t* codes, const float* scale,
                const float* bias, void* panel);
/// Codes of any panel in torch's weight order, whatever its layout.
void unpack_panel(const void* panel, int8_t* codes);
/// Whether `bytes` at `panel` are a well-formed panel (header, offsets, sizes), and of a layout
/// that some ISA of this machine computes with.
enum class PanelCheck { kOk, kMalformed, kOtherLayout };
PanelCheck check_panel(const void* panel, int64_t bytes);
/// Whether a well-formed panel, of which only the header is read, is what the active ISA packs.
bool panel_is_current(const PanelHeader& header);

/// Canonical bit stream: LSB-first, each output channel starts at a byte. bits 2..8, signed codes
/// two's complement.
int64_t packed_row_bytes(int64_t per_channel, int32_t bits);
void pack_bits(const int8_t* codes, int64_t channels, int64_t per_channel, int32_t bits,
               uint8_t* out);
void unpack_bits(const uint8_t* in, int64_t channels, int64_t per_channel, int32_t bits,
                 int8_t* codes);

// ---- conv.cpp (dense, grouped, depthwise, 1-D and linear: all are convolutions) -----------------

/// Output size of a convolution or pooling along one axis (floor mode).
int64_t conv_out_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad_total,
                      int64_t dilation);

/// u8 x s8 convolution to u8. `out` may have pixel_pitch > c (a slice of a concat) and any halo;
/// its halo is not written. `residual` (same n, h, w, c as out, own pitches) or nullptr. in.halo >=
/// what the geometry reads beyond the image on every side.
void conv_u8(const Image& in, const ConvGeometry& g, const void* panel, const Epilogue& e,
             const Image* residual, const Image& out);
/// The same to float. Any output strides.
void conv_f32(const Image& in, const ConvGeometry& g, const void* panel, const Epilogue& e,
              const FloatImage& out);
/// Dynamic linear: x [m, k] float, contiguous rows of pitch ldx, quantized per row (params_of_range
/// of the row, max_code 255), y[m, c] = fmaf(float(sum - z[m] * colsum[c]), float(s_x[m] * s_w[c]),
/// bias[c]). No memory beyond a per-thread scratch.
void linear_dynamic(const float* x, int64_t m, int64_t k, int64_t ldx, const void* panel, float* y,
                    int64_t ldy);
/// The same with given parameters of x.
void linear_static(const float* x, int64_t m, int64_t k, int64_t ldx, QuantParams params,
                   const void* panel, float* y, int64_t ldy);
/// Dynamic convolution: one scale a sample. params has in.n entries; y as in linear_dynamic.
void conv_dynamic(const Image& in, const QuantParams* params, const ConvGeometry& g,
                  const void* panel, const FloatImage& out);

/// Multiply-adds done in integers by conv_* and linear_* since the last reset (logical ones, no
/// padding). Drivers add theirs.
int64_t integer_macs();
void add_integer_macs(int64_t macs);
void reset_integer_macs();

// ---- lowbit_pack.cpp ----------------------------------------------------------------------------

/// A weight [out_features, in_features] of unsigned codes before packing; arrays in that order.
struct LowbitWeight {
  LowbitOrder order;
  LowbitKind kind;
  int32_t bits;
  int64_t out_features, in_features;
  int64_t group_size;         // a multiple of 16 in 16..256, or 0: one scale for the whole row
  const uint8_t* codes;       // below 2^bits
  const float* scale;         // [out_features, groups]; bfloat16 values unless group_size is 0
  const uint8_t* zero_point;  // kAffine (bits <= 7): [out_features, groups], below 2^bits
  const int8_t* levels;       // kLevels: [ceil(out_features / 64), 2^bits]
  const float* bias;          // [out_features] or nullptr
};
/// max(1, ceil(in_features / group_size)); 1 where group_size is 0.
int64_t lowbit_groups(int64_t in_features, int64_t group_size);
/// Bytes of what pack_lowbit writes, or -1 where that does not fit 63 bits.
int64_t lowbit_bytes(const LowbitWeight& weight);
/// packed: 64-byte aligned. One order serves every ISA.
void pack_lowbit(const LowbitWeight& weight, void* packed);
/// What was packed; arrays may be nullptr. Level tables of more than 4 bits are stored as levels:
/// codes of equal levels come back as the smallest of them.
void unpack_lowbit(const void* packed, uint8_t* codes, float* scale, uint8_t* zero_point,
                   int8_t* levels, float* bias);
/// float(level) * scale, [out_features, in_features].
void dequantize_lowbit(const void* packed, float* weight);
/// Whether `bytes` at `packed` are well formed (header, offsets, sizes, no code that would be read
/// outside a table).
bool check_lowbit(const void* packed, int64_t bytes);

// ---- lowbit.cpp ---------------------------------------------------------------------------------

/// x [m, k] float, rows of pitch ldx, quantized per row like linear_dynamic's; with the row's scale
/// s and zero point Z, S[g] = sum of (q - Z) * level over group g,
///   f = 0, f = fmaf(float(S[g]), scale[g], f) for every g, y = fmaf(f, s, bias).
/// packed: kColumns.
void linear_lowbit(const float* x, int64_t m, int64_t ldx, const void* packed, float* y,
                   int64_t ldy);
/// The same with given parameters of x.
void linear_lowbit_static(const float* x, int64_t m, int64_t ldx, QuantParams params,
                          const void* packed, float* y, int64_t ldy);
/// Float activations: p = 0, p = fmaf(x[k], float(level), p) for the inputs of a group in ascending
/// order; f = 0, f = fmaf(p, scale[g], f) for every group; y = f + bias.
void linear_lowbit_float(const float* x, int64_t m, int64_t ldx, const void* packed, float* y,
                         int64_t ldy);
/// y[i] = row indices[i] of a weight packed as kRows: float(level) * scale of its group. Indices
/// lie in [0, out_features).
void embedding_lowbit(const int64_t* indices, int64_t count, const void* packed, float* y);

// ---- recurrent.cpp ------------------------------------------------------------------------------

/// The weight that hidden states are multiplied by: a panel, with dynamic or given parameters of
/// activations, or packed codes (kColumns), with either of these or with float activations.
struct HiddenWeight {
  const void* weight;
  bool packed, floats;
  const QuantParams* fixed;  // or null
};
/// One layer of a recurrent network in one direction. At time step t there are batch_sizes[t]
/// sequences, never more than at t - 1. Rows of gates and y are ordered by time step.
struct Recurrence {
  RecurrentMode mode;
  int64_t width, times;
  const int64_t* batch_sizes;
  bool reverse;        // from the last time step to the first
  const float* gates;  // [rows, gates_of(mode) * width]: the input's part
  float *h, *c;        // [batch_sizes[0], width]: the first state, then the last; c for LSTM only
  float* y;            // [rows, width]: h of every time step
};
/// The product of h with the weight is linear_dynamic's, linear_static's or linear_lowbit*'s.
void recurrent(const Recurrence& r, const HiddenWeight& weight);
/// One time step of `rows` sequences: see RecurrentCell. state: h of GRU, c of LSTM.
void recurrent_cell(RecurrentMode mode, int64_t rows, int64_t width, const float* x, const float* h,
                    const float* state, float* next_h, float* next_c);

// ---- elementwise.cpp ----------------------------------------------------------------------------
// Images have equal n, h, w, c and any pitches; out may alias an input exactly.

/// y = int(rne(min(max(fmaf(float(a), ma, fmaf(float(b), mb, offset)), lo), hi)))
void add(const Image& a, const Image& b, float ma, float mb, float offset, float lo, float hi,
         const Image& out);
/// y = int(rne(min(max(fmaf(float((a - za) * (b - zb)), m, offset), lo), hi))); b has the shape of
/// a, or h = w = 1.
void multiply(const Image& a, const Image& b, int32_t za, int32_t zb, float m, float offset,
              float lo, float hi, const Image& out);
/// y = int(rne(min(max(fmaf(float(x), m[c], offset[c]), lo), hi)))
void affine(const Image& x, const float* m, const float* offset, float lo, float hi,
            const Image& out);
/// y = table[x]; with per_channel, y = table[256 * c + x].
void apply_table(const Image& x, const uint8_t* table, bool per_channel, const Image& out);

// ---- pool.cpp -----------------------------------------------------------------------------------

/// Maximum over the part of the window inside the image.
void max_pool(const Image& x, const ConvGeometry& g, const Image& out);
/// y = int(rne(min(max(fmaf(float(sum - z * inside), m / divisor, offset), lo), hi))), where sum
/// and inside are over the part of the window inside the image, m = float(s_x / s_y) and the
/// quotient m / divisor is one float division. divisor: `inside` or, with count_include_pad, the
/// window's size clipped to the padded image (as torch), or divisor_override if > 0. pad_bottom and
/// pad_right are needed for that.
struct AveragePool {
  ConvGeometry window;
  int64_t pad_bottom = 0, pad_right = 0;
  bool count_include_pad = true;
  int64_t divisor_override = 0;
};
void average_pool(const Image& x, const AveragePool& p, int32_t z, float m, float offset, float lo,
                  float hi, const Image& out);
/// Windows [floor(i * in / out), ceil((i + 1) * in / out)) as torch.
void adaptive_average_pool(const Image& x, int32_t z, float m, float offset, float lo, float hi,
                           const Image& out);
void adaptive_max_pool(const Image& x, const Image& out);

// ---- layout.cpp: moves codes, computes nothing --------------------------------------------------

void copy(const Image& x, const Image& out);
/// out channel i = x channel index[i], or `code` where index[i] < 0.
void gather_channels(const Image& x, const int32_t* index, uint8_t code, const Image& out);
/// out(i, j) = x(start_h + i * step_h, start_w + j * step_w)
void slice(const Image& x, int64_t start_h, int64_t step_h, int64_t start_w, int64_t step_w,
           const Image& out);
/// Nearest: source row = row_index[i], column = column_index[j] (the caller computes torch's rule).
void upsample_nearest(const Image& x, const int64_t* row_index, const int64_t* column_index,
                      const Image& out);
enum class PadMode : int32_t { kConstant = 0, kReflect = 1, kReplicate = 2, kCircular = 3 };
/// Pads by (top, left); below and right follow from out's size.
void pad(const Image& x, int64_t top, int64_t left, PadMode mode, uint8_t code, const Image& out);
/// Image [n, h, w, c] to rows [n, c * h * w] in NCHW order, and back. `rows` is an Image with n =
/// 1, h = 1, w = n.
void flatten(const Image& x, const Image& rows);
void unflatten(const Image& rows, const Image& out);

}  // namespace octavo

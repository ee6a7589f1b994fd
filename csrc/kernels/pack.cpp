// Panels and the canonical bit stream: writes, reads and checks packed weights. Called by ops/ when
// a layer is built, saved or loaded, and by conv.cpp (check only in debug builds). Speed matters
// little here; memory orders are described in panel.h.
#include <cstring>

#include "bits.h"
#include "dispatch.h"
#include "kernel_table.h"
#include "kernels.h"
#include "panel.h"

namespace octavo {
namespace {

constexpr int64_t kHeaderBytes = 128;
constexpr int64_t kAlignment = 64;
constexpr int64_t kLargestChannels = int64_t{1} << 31;
constexpr int64_t kLargestKernel = int64_t{1} << 20;

/// a * b into *product; false if it does not fit int64.
bool multiply(int64_t a, int64_t b, int64_t* product) {
  return !__builtin_mul_overflow(a, b, product);
}

PanelLayout active_layout(int64_t groups, int64_t in_channels, int64_t out_channels) {
  return layout_of(active_table().gemm.layout, groups, in_channels, out_channels);
}

/// Everything in a header that follows from the shape and the layout. False if a size overflows.
bool make_header(const WeightShape& shape, PanelLayout layout, PanelHeader* header) {
  if (shape.groups > kLargestChannels || shape.out_channels > kLargestChannels ||
      shape.in_channels > kLargestChannels || shape.kernel_h > kLargestKernel ||
      shape.kernel_w > kLargestKernel) {
    return false;
  }
  PanelHeader h{};
  h.magic = kPanelMagic;
  h.layout = static_cast<int32_t>(layout);
  h.bits = shape.bits;
  h.out_channels = shape.out_channels;
  h.in_channels = shape.in_channels;
  h.groups = shape.groups;
  h.kernel_h = shape.kernel_h;
  h.kernel_w = shape.kernel_w;
  h.depthwise =
      shape.groups > 1 && shape.groups == shape.in_channels && shape.groups == shape.out_channels;
  if (shape.groups < 1 || shape.in_channels % shape.groups != 0 ||
      shape.out_channels % shape.groups != 0) {
    return false;
  }
  h.blocks = h.depthwise ? h.groups
                         : merged_blocks(layout, shape.groups, shape.in_channels / shape.groups,
                                         shape.out_channels / shape.groups);
  // An upper bound of every product in panel_geometry: padding at most 64 a factor.
  int64_t bound;
  if (!multiply(shape.out_channels + 64 * shape.groups, shape.in_channels + 64, &bound) ||
      !multiply(bound, shape.kernel_h + 4, &bound) ||
      !multiply(bound, 64 * (shape.kernel_w + 1), &bound)) {
    return false;
  }
  const int64_t column_bytes = round_up(shape.out_channels * 4, kAlignment);
  h.weight_offset = kHeaderBytes;
  h.colsum_offset = h.weight_offset + round_up(panel_geometry(h).weight_bytes, kAlignment);
  h.scale_offset = h.colsum_offset + column_bytes;
  h.bias_offset = h.scale_offset + column_bytes;
  h.total_bytes = h.bias_offset + column_bytes;
  *header = h;
  return true;
}

/// Calls visit(byte in the weight section, index in torch's weight order) for every code.
template <class Visit>
void for_each_code(const PanelHeader& h, Visit&& visit) {
  const auto layout = static_cast<PanelLayout>(h.layout);
  const PanelGeometry g = panel_geometry(h);
  const int64_t taps = h.kernel_h * h.kernel_w;
  if (h.depthwise != 0) {
    for (int64_t c = 0; c < h.out_channels; ++c) {
      for (int64_t t = 0; t < taps; ++t) {
        visit(depthwise_offset(layout, h.kernel_h, h.kernel_w, c, t / h.kernel_w, t % h.kernel_w),
              c * taps + t);
      }
    }
    return;
  }
  const int64_t nr = kPanelUnits[h.layout].nr;
  const int64_t group_in = h.in_channels / h.groups, group_out = h.out_channels / h.groups;
  for (int64_t o = 0; o < h.out_channels; ++o) {
    const int64_t block = o / g.block_out, column = o % g.block_out, p = column / nr;
    const int64_t width = panel_width(layout, g, p);
    const int64_t base = panel_start(layout, g, block, p);
    const int64_t first_in = o / group_out * group_in - block * g.block_in;
    for (int64_t i = 0; i < group_in; ++i) {
      const int64_t c = first_in + i;  // within the block
      for (int64_t t = 0; t < taps; ++t) {
        visit(base + panel_offset(layout, width, g.runs * g.run_bytes, place_in_column(h, g, t, c),
                                  column % nr),
              (o * group_in + i) * taps + t);
      }
    }
  }
}

template <class T>
T* section(void* panel, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<uint8_t*>(panel) + offset);
}

}  // namespace

PanelHeader panel_header(const WeightShape& shape) {
  PanelHeader h{};
  const PanelLayout layout = active_layout(shape.groups, shape.in_channels, shape.out_channels);
  if (!make_header(shape, layout, &h)) h.total_bytes = -1;
  return h;
}

void pack_panel(const PanelHeader& h, const int8_t* codes, const float* scale, const float* bias,
                void* panel) {
  std::memset(panel, 0, static_cast<size_t>(h.total_bytes));
  std::memcpy(panel, &h, sizeof h);

  int8_t* weights = section<int8_t>(panel, h.weight_offset);
  for_each_code(h, [&](int64_t byte, int64_t code) { weights[byte] = codes[code]; });

  int32_t* colsum = section<int32_t>(panel, h.colsum_offset);
  const int64_t per_channel = h.in_channels / h.groups * h.kernel_h * h.kernel_w;
  for (int64_t o = 0; o < h.out_channels; ++o) {
    int64_t sum = 0;
    for (int64_t k = 0; k < per_channel; ++k) sum += codes[o * per_channel + k];
    colsum[o] = static_cast<int32_t>(sum);  // 128 * k < 2^31 for k < 2^24
  }
  const auto bytes = static_cast<size_t>(h.out_channels) * sizeof(float);
  if (bytes != 0) {
    std::memcpy(section<float>(panel, h.scale_offset), scale, bytes);
    if (bias != nullptr) std::memcpy(section<float>(panel, h.bias_offset), bias, bytes);
  }
}

void unpack_panel(const void* panel, int8_t* codes) {
  PanelHeader h;
  std::memcpy(&h, panel, sizeof h);
  const int8_t* weights = static_cast<const int8_t*>(panel) + h.weight_offset;
  for_each_code(h, [&](int64_t byte, int64_t code) { codes[code] = weights[byte]; });
}

PanelCheck check_panel(const void* panel, int64_t bytes) {
  if (bytes < kHeaderBytes) return PanelCheck::kMalformed;
  PanelHeader h;
  std::memcpy(&h, panel, sizeof h);
  const auto in = [](int64_t v, int64_t low, int64_t high) { return low <= v && v <= high; };
  if (h.magic != kPanelMagic || !in(h.layout, 0, 3) || !in(h.depthwise, 0, 1) ||
      !in(h.bits, 2, 8) || !in(h.out_channels, 0, kLargestChannels) ||
      !in(h.in_channels, 0, kLargestChannels) || !in(h.groups, 1, kLargestChannels) ||
      !in(h.kernel_h, 1, kLargestKernel) || !in(h.kernel_w, 1, kLargestKernel)) {
    return PanelCheck::kMalformed;
  }
  const WeightShape shape{h.out_channels, h.in_channels, h.groups, h.kernel_h, h.kernel_w, h.bits};
  PanelHeader expected;
  const auto layout = static_cast<PanelLayout>(h.layout);
  if (!make_header(shape, layout, &expected) || std::memcmp(&h, &expected, sizeof h) != 0 ||
      h.total_bytes > bytes) {
    return PanelCheck::kMalformed;
  }
  if (panel_is_current(h)) return PanelCheck::kOk;
  for (int i = 0; i < isa_count(); ++i) {
    const KernelTable* table = find_table(isa_name(i));
    if (table != nullptr &&
        layout == layout_of(table->gemm.layout, h.groups, h.in_channels, h.out_channels)) {
      return PanelCheck::kOk;
    }
  }
  return PanelCheck::kOtherLayout;
}

bool panel_is_current(const PanelHeader& h) {
  return h.layout == static_cast<int32_t>(active_layout(h.groups, h.in_channels, h.out_channels));
}

int64_t packed_row_bytes(int64_t per_channel, int32_t bits) { return bit_bytes(per_channel, bits); }

void pack_bits(const int8_t* codes, int64_t channels, int64_t per_channel, int32_t bits,
               uint8_t* out) {
  const int64_t row = bit_bytes(per_channel, bits);
  for (int64_t c = 0; c < channels; ++c) {
    put_bits(codes + c * per_channel, per_channel, bits, out + c * row);
  }
}

void unpack_bits(const uint8_t* in, int64_t channels, int64_t per_channel, int32_t bits,
                 int8_t* codes) {
  const int64_t row = bit_bytes(per_channel, bits);
  for (int64_t c = 0; c < channels; ++c) {
    get_bits(in + c * row, per_channel, bits, codes + c * per_channel);
  }
}

}  // namespace octavo

// Where every weight lies inside a panel: the one description of the memory orders, used by
// pack.cpp (writes them), product_*.cpp (find panels and runs) and tests. The order of each layout
// is also written into the loops of its tiles.
//
// A dense panel holds `blocks` dense products. Each block's columns (output channels) are cut into
// panels of `nr` columns, the last one narrower (a multiple of n_unit). Inside a panel, K is cut
// into runs, one for each stretch of activations that is contiguous in memory, each padded with
// zero weights to a multiple of k_unit:
//
//   block 0: [panel 0: run 0 | run 1 | ...][panel 1: run 0 | run 1 | ...] ...   block 1: ...
//
// One block: a run is a kernel row (kernel_w * in_channels codes), or several that fit into one
// k_unit together. More blocks: a run is one kernel position (block_in codes).
//
//   kScalar  [k][width]
//   kVnni    [k / 4][width][4]
//   kAmx     [width / 16][k / 64][16 quads][16 columns][4]: tiles of 1 KiB, each column of tiles
//            contiguous, so that a product reads memory in order
//   kNeon    [k / 4][width][4]
#pragma once

#include <cstdint>

#include "types.h"

namespace octavo {

/// The units that a layout needs.
struct PanelUnits {
  int64_t nr;       // columns of a full panel
  int64_t n_unit;   // a narrower panel has a multiple of these
  int64_t k_unit;   // runs are padded to multiples of these
  int64_t merge_n;  // groups are merged into one block while it has at most so many columns,
  int64_t merge_k;  // or at most so many input channels: padding to those is multiplied anyway
  int64_t join_k;   // kernel rows are joined to runs of at most so many codes
};

inline constexpr PanelUnits kPanelUnits[] = {
    {16, 1, 1, 1, 1, 0},       // kScalar
    {64, 16, 4, 16, 4, 0},     // kVnni
    {64, 16, 64, 16, 64, 64},  // kAmx
    {64, 16, 4, 16, 4, 0},     // kNeon
};

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

/// Channels of one depthwise chunk: panels are padded to full chunks.
inline constexpr int64_t kDepthwiseChunk = 64;

/// Byte of (k, n) in a panel of `width` columns and `depth` codes a column; n < width.
constexpr int64_t panel_offset(PanelLayout layout, int64_t width, int64_t depth, int64_t k,
                               int64_t n) {
  switch (layout) {
    case PanelLayout::kScalar:
      return k * width + n;
    case PanelLayout::kAmx:
      return (n / 16 * (depth / 64) + k / 64) * 1024 + (k % 64 / 4 * 16 + n % 16) * 4 + k % 4;
    default:
      return (k / 4 * width + n) * 4 + k % 4;
  }
}

/// The most runs of joined kernel rows, which tiles copy together for each pixel.
inline constexpr int64_t kJoinedRuns = 4;

/// Sizes derived from a panel's header; the same for packing, checking and multiplying.
struct PanelGeometry {
  int64_t block_in, block_out;  // channels of one block
  int64_t runs, run_codes;      // codes of a run without padding
  int64_t joined_rows;          // kernel rows of a run where it has several, else 0
  int64_t run_bytes;            // padded, for each column
  int64_t panels;               // of one block
  int64_t block_bytes;
  int64_t weight_bytes;
};

/// Rows of kernel taps that are interleaved into dwords, four at a time (vector layouts).
constexpr int64_t tap_row_groups(int64_t kernel_h) { return (kernel_h + 3) / 4; }

/// Bytes of one chunk of kDepthwiseChunk channels. kScalar and kNeon: [kernel_h][kernel_w][chunk].
/// kVnni and kAmx: [row group][kernel_w][4 vectors][16 dwords][4 rows], dword 4 * lane + i of
/// vector j being channel 16 * lane + 4 * j + i: the order in which byte and word unpacks
/// interleave four rows of 64 channels.
constexpr int64_t depthwise_chunk_bytes(PanelLayout layout, int64_t kernel_h, int64_t kernel_w) {
  const bool interleaved = layout == PanelLayout::kVnni || layout == PanelLayout::kAmx;
  return (interleaved ? 4 * tap_row_groups(kernel_h) : kernel_h) * kernel_w * kDepthwiseChunk;
}

/// Byte of tap (i, j) of `channel` in a depthwise panel.
constexpr int64_t depthwise_offset(PanelLayout layout, int64_t kernel_h, int64_t kernel_w,
                                   int64_t channel, int64_t i, int64_t j) {
  const int64_t base =
      channel / kDepthwiseChunk * depthwise_chunk_bytes(layout, kernel_h, kernel_w);
  const int64_t c = channel % kDepthwiseChunk;
  if (layout != PanelLayout::kVnni && layout != PanelLayout::kAmx) {
    return base + (i * kernel_w + j) * kDepthwiseChunk + c;
  }
  const int64_t lane = c / 16, vector = c % 16 / 4, place = c % 4;
  return base + ((i / 4 * kernel_w + j) * 4 + vector) * 64 + (4 * lane + place) * 4 + i % 4;
}

/// Columns of panel `p` of a block.
constexpr int64_t panel_width(PanelLayout layout, const PanelGeometry& geometry, int64_t p) {
  const PanelUnits& units = kPanelUnits[static_cast<int>(layout)];
  const int64_t left = round_up(geometry.block_out, units.n_unit) - p * units.nr;
  return left < units.nr ? left : units.nr;
}

/// Columns of panels [first, last) of a block.
constexpr int64_t panels_width(PanelLayout layout, const PanelGeometry& geometry, int64_t first,
                               int64_t last) {
  const int64_t nr = kPanelUnits[static_cast<int>(layout)].nr;
  return (last - first - 1) * nr + panel_width(layout, geometry, last - 1);
}

/// Where panel `p` of block `b` begins in the weight section.
constexpr int64_t panel_start(PanelLayout layout, const PanelGeometry& geometry, int64_t b,
                              int64_t p) {
  const int64_t nr = kPanelUnits[static_cast<int>(layout)].nr;
  return b * geometry.block_bytes + p * nr * geometry.runs * geometry.run_bytes;
}

/// Geometry of a header whose products are known not to overflow (check_panel).
inline PanelGeometry panel_geometry(const PanelHeader& h) {
  const auto layout = static_cast<PanelLayout>(h.layout);
  const PanelUnits& units = kPanelUnits[h.layout];
  PanelGeometry g{};
  if (h.depthwise != 0) {
    g.block_in = g.block_out = h.out_channels;
    g.runs = 1;
    g.run_codes = g.run_bytes = h.kernel_h * h.kernel_w;
    g.panels = 1;
    g.weight_bytes = round_up(h.out_channels, kDepthwiseChunk) / kDepthwiseChunk *
                     depthwise_chunk_bytes(layout, h.kernel_h, h.kernel_w);
    g.block_bytes = g.weight_bytes;
    return g;
  }
  g.block_in = h.blocks > 0 ? h.in_channels / h.blocks : 0;
  g.block_out = h.blocks > 0 ? h.out_channels / h.blocks : 0;
  g.runs = h.blocks == 1 ? h.kernel_h : h.kernel_h * h.kernel_w;
  g.run_codes = h.blocks == 1 ? h.kernel_w * g.block_in : g.block_in;
  const int64_t rows = g.run_codes == 0 ? 0 : units.join_k / g.run_codes;
  if (h.blocks == 1 && h.kernel_h > 1 && rows > 1 && (h.kernel_h - 1) / rows < kJoinedRuns) {
    g.joined_rows = rows;
    g.runs = (h.kernel_h - 1) / rows + 1;
    g.run_codes *= h.kernel_h < rows ? h.kernel_h : rows;
  }
  g.run_bytes = round_up(g.run_codes, units.k_unit);
  g.panels = (round_up(g.block_out, units.n_unit) + units.nr - 1) / units.nr;
  g.block_bytes = round_up(g.block_out, units.n_unit) * g.runs * g.run_bytes;
  g.weight_bytes = h.blocks * g.block_bytes;
  return g;
}

/// Place of kernel position `tap` (row major) of input channel `c` of a block among the codes of a
/// column.
constexpr int64_t place_in_column(const PanelHeader& h, const PanelGeometry& g, int64_t tap,
                                  int64_t c) {
  if (h.blocks > 1) return tap * g.run_bytes + c;
  if (g.joined_rows > 0) {
    const int64_t row = tap / h.kernel_w;
    return row / g.joined_rows * g.run_bytes +
           (row % g.joined_rows * h.kernel_w + tap % h.kernel_w) * g.block_in + c;
  }
  return tap / h.kernel_w * g.run_bytes + tap % h.kernel_w * g.block_in + c;
}

/// Blocks that `groups` groups become in a layout.
inline int64_t merged_blocks(PanelLayout layout, int64_t groups, int64_t group_in,
                             int64_t group_out) {
  const PanelUnits& units = kPanelUnits[static_cast<int>(layout)];
  // No unit is above 64, so larger merges never qualify (channels may be 0: then merging is
  // pointless too).
  for (int64_t merged = groups < 64 ? groups : 64; merged > 1; --merged) {
    if (groups % merged == 0 &&
        (merged * group_out <= units.merge_n || merged * group_in <= units.merge_k)) {
      return groups / merged;
    }
  }
  return groups;
}

/// The layout of a weight for the active instruction set's. Groups of few channels would fill a
/// small part of AMX's tiles, and most of their panels would be zeros; groups of 16 and more
/// channels in blocks of 48 and more are faster in tiles. 104 channels in 13 groups, kernel 3x3, 28
/// pixels:
///
///   kAmx   124 KB  151 us
///   kVnni   19 KB  114 us
inline PanelLayout layout_of(PanelLayout active, int64_t groups, int64_t in_channels,
                             int64_t out_channels) {
  if (active != PanelLayout::kAmx || groups <= 1 || groups == in_channels) return active;
  const int64_t group_in = in_channels / groups;
  const int64_t blocks = merged_blocks(active, groups, group_in, out_channels / groups);
  const bool narrow = group_in <= 16 && in_channels / blocks < 48;
  return narrow ? PanelLayout::kVnni : active;
}

}  // namespace octavo

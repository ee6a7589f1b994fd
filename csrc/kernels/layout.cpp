// Drivers that move codes and compute nothing: copy, gather, slice, upsample, pad, flatten. Called
// by the region; calls memcpy.
#include <algorithm>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "image_rows.h"
#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"

namespace octavo {
namespace {

// 2^19 codes at 0.08 ns are 40 us.
constexpr int64_t kGrain = int64_t{1} << 19;

int64_t pixel_grain(const Image& x) { return kGrain / std::max<int64_t>(x.c, 1); }

void copy_pixels(const uint8_t* from, int64_t from_pitch, int64_t pixels, int64_t channels,
                 uint8_t* to, int64_t to_pitch) {
  if (from == to && from_pitch == to_pitch) return;
  if (from_pitch == channels && to_pitch == channels) {
    std::memcpy(to, from, pixels * channels);
    return;
  }
  for (int64_t p = 0; p < pixels; ++p)
    std::memcpy(to + p * to_pitch, from + p * from_pitch, channels);
}

void fill_pixels(uint8_t code, int64_t pixels, int64_t channels, uint8_t* to, int64_t pitch) {
  if (pitch == channels) {
    std::memset(to, code, pixels * channels);
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) std::memset(to + p * pitch, code, channels);
}

// Source position of i in [-before, ...) beyond an axis of `size`, as torch's padding modes; -1:
// constant.
int64_t source_of(int64_t i, int64_t size, PadMode mode) {
  if (i >= 0 && i < size) return i;
  switch (mode) {
    case PadMode::kConstant:
      return -1;
    case PadMode::kReflect:
      return i < 0 ? -i : 2 * (size - 1) - i;
    case PadMode::kReplicate:
      return i < 0 ? 0 : size - 1;
    case PadMode::kCircular:
      return i < 0 ? i + size : i - size;
  }
  return -1;
}

// to[column * rows + row] = from[row * pitch + column], in blocks that stay in cache.
void transpose(const uint8_t* from, int64_t pitch, int64_t rows, int64_t columns, uint8_t* to,
               int64_t to_pitch) {
  constexpr int64_t kSide = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += kSide) {
    const int64_t r1 = std::min(rows, r0 + kSide);
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = r0; r < r1; ++r) to[c * to_pitch + r] = from[r * pitch + c];
    }
  }
}

// Fills a block for output channels from block->to on. Each window starts at the smallest source
// channel not yet covered, which needs the fewest windows. False where kGatherWindows are too few.
bool plan_block(const int32_t* index, uint8_t code, int64_t in_channels, GatherBlock* block) {
  block->windows = 0;
  int32_t sources[16];
  for (int64_t i = 0; i < 16; ++i) {
    sources[i] = index[block->to + i];
    block->fill[i] = sources[i] < 0 ? code : 0;
  }
  while (true) {
    int64_t smallest = -1;
    for (const int32_t source : sources) {
      if (source >= 0 && (smallest < 0 || source < smallest)) smallest = source;
    }
    if (smallest < 0) return true;
    if (block->windows == kGatherWindows) return false;
    const int64_t first = std::min(smallest, in_channels - 16);
    for (int64_t i = 0; i < 16; ++i) {
      uint8_t& at = block->index[block->windows][i];
      at = GatherBlock::kNotHere;
      if (sources[i] < 0 || sources[i] >= first + 16) continue;
      at = static_cast<uint8_t>(sources[i] - first);
      sources[i] = -1;
    }
    block->first[block->windows++] = first;
  }
}

// Blocks of 16 channels, the last one ending with the image's; empty where the gather does not fit
// that form.
std::vector<GatherBlock> plan_gather(const int32_t* index, uint8_t code, int64_t in_channels,
                                     int64_t out_channels) {
  std::vector<GatherBlock> blocks;
  if (in_channels < 16 || out_channels < 16) return blocks;
  blocks.resize(static_cast<size_t>((out_channels + 15) / 16));
  for (size_t b = 0; b < blocks.size(); ++b) {
    blocks[b].to = std::min(static_cast<int64_t>(16 * b), out_channels - 16);
    if (!plan_block(index, code, in_channels, &blocks[b])) return {};
  }
  return blocks;
}

}  // namespace

void copy(const Image& x, const Image& out) {
  for_each_run(out.n, out.h, out.w, std::min(joined(x), joined(out)), pixel_grain(out),
               [&](int64_t n, int64_t row, int64_t column, int64_t pixels) {
                 copy_pixels(pixel(x, n, row, column), x.pixel_pitch, pixels, out.c,
                             pixel(out, n, row, column), out.pixel_pitch);
               });
}

void gather_channels(const Image& x, const int32_t* index, uint8_t code, const Image& out) {
  const ElementTable& t = active_table().element;
  const std::vector<GatherBlock> blocks = plan_gather(index, code, x.c, out.c);
  for_each_run(
      out.n, out.h, out.w, std::min(joined(x), joined(out)), pixel_grain(out) / 4,
      [&](int64_t n, int64_t row, int64_t column, int64_t pixels) {
        const uint8_t* from = pixel(x, n, row, column);
        uint8_t* to = pixel(out, n, row, column);
        if (!blocks.empty()) {
          const PixelRun run{pixels, out.c, x.pixel_pitch, out.pixel_pitch};
          t.gather_pixels_u8(from, run, blocks.data(), static_cast<int64_t>(blocks.size()), to);
          return;
        }
        for (int64_t p = 0; p < pixels; ++p, from += x.pixel_pitch, to += out.pixel_pitch) {
          for (int64_t c = 0; c < out.c; ++c) to[c] = index[c] < 0 ? code : from[index[c]];
        }
      });
}

void slice(const Image& x, int64_t start_h, int64_t step_h, int64_t start_w, int64_t step_w,
           const Image& out) {
  for_each_run(out.n, out.h, out.w, Joined::kRow, pixel_grain(out),
               [&](int64_t n, int64_t row, int64_t column, int64_t pixels) {
                 copy_pixels(pixel(x, n, start_h + row * step_h, start_w + column * step_w),
                             step_w * x.pixel_pitch, pixels, out.c, pixel(out, n, row, column),
                             out.pixel_pitch);
               });
}

void upsample_nearest(const Image& x, const int64_t* row_index, const int64_t* column_index,
                      const Image& out) {
  for_each_run(out.n, out.h, out.w, Joined::kRow, pixel_grain(out),
               [&](int64_t n, int64_t row, int64_t column, int64_t pixels) {
                 const uint8_t* from = pixel(x, n, row_index[row], 0);
                 uint8_t* to = pixel(out, n, row, column);
                 for (int64_t p = 0; p < pixels; ++p) {
                   std::memcpy(to + p * out.pixel_pitch,
                               from + column_index[column + p] * x.pixel_pitch, out.c);
                 }
               });
}

void pad(const Image& x, int64_t top, int64_t left, PadMode mode, uint8_t code, const Image& out) {
  for_each_run(out.n, out.h, out.w, Joined::kRow, pixel_grain(out),
               [&](int64_t n, int64_t row, int64_t column, int64_t pixels) {
                 uint8_t* to = pixel(out, n, row, column);
                 const int64_t from_row = source_of(row - top, x.h, mode);
                 if (from_row < 0) {
                   fill_pixels(code, pixels, out.c, to, out.pixel_pitch);
                   return;
                 }
                 for (int64_t p = 0; p < pixels;) {
                   const int64_t i = column + p - left;
                   int64_t length = 1;
                   if (i >= 0 && i < x.w) {
                     length = std::min(pixels - p, x.w - i);
                     copy_pixels(pixel(x, n, from_row, i), x.pixel_pitch, length, out.c,
                                 to + p * out.pixel_pitch, out.pixel_pitch);
                   } else if (const int64_t from = source_of(i, x.w, mode); from >= 0) {
                     std::memcpy(to + p * out.pixel_pitch, pixel(x, n, from_row, from), out.c);
                   } else {
                     std::memset(to + p * out.pixel_pitch, code, out.c);
                   }
                   p += length;
                 }
               });
}

void flatten(const Image& x, const Image& rows) {
  parallel_for(0, x.n * x.h, pixel_grain(x) / std::max<int64_t>(x.w * 8, 1),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t n = i / x.h, row = i % x.h;
                   transpose(pixel(x, n, row, 0), x.pixel_pitch, x.w, x.c,
                             pixel(rows, 0, 0, n) + row * x.w, x.h * x.w);
                 }
               });
}

void unflatten(const Image& rows, const Image& out) {
  parallel_for(0, out.n * out.h, pixel_grain(out) / std::max<int64_t>(out.w * 8, 1),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t n = i / out.h, row = i % out.h;
                   transpose(pixel(rows, 0, 0, n) + row * out.w, out.h * out.w, out.c, out.w,
                             pixel(out, n, row, 0), out.pixel_pitch);
                 }
               });
}

}  // namespace octavo

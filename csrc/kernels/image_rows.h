// Splits the pixels of images over threads into the longest runs that are contiguous rows in all of
// them. Used by the drivers that work pixel by pixel: quantize.cpp, elementwise.cpp, layout.cpp.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parallel.h"
#include "types.h"

namespace octavo {

/// How far rows follow one another without a gap: within a row, an image, or the whole batch.
enum class Joined { kRow, kImage, kBatch };

inline Joined joined(const Image& x) {
  if (x.h > 1 && x.row_pitch != x.w * x.pixel_pitch) return Joined::kRow;
  if (x.n > 1 && x.image_pitch != x.h * x.w * x.pixel_pitch) return Joined::kImage;
  return Joined::kBatch;
}

inline uint8_t* pixel(const Image& x, int64_t n, int64_t row, int64_t column) {
  return x.data + n * x.image_pitch + row * x.row_pitch + column * x.pixel_pitch;
}

inline bool dense_pixels(const Image& x) { return x.pixel_pitch == x.c; }

/// Calls f(image, row, column, pixels) for runs that cover all pixels of an n x h x w batch. A run
/// continues over row and image ends as far as `extent` allows. `grain`: pixels that are worth a
/// thread.
template <class F>
void for_each_run(int64_t n, int64_t h, int64_t w, Joined extent, int64_t grain, F&& f) {
  const int64_t total = n * h * w;
  const int64_t limit = extent == Joined::kRow ? w : extent == Joined::kImage ? h * w : total;
  parallel_for(0, total, std::max<int64_t>(grain, 1), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end;) {
      const int64_t pixels = std::min(end, (p / limit + 1) * limit) - p;
      f(p / (h * w), p / w % h, p % w, pixels);
      p += pixels;
    }
  });
}

}  // namespace octavo

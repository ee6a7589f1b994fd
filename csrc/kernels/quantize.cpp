// Drivers between float values and codes: runs, images of any strides, dynamic parameters, halos.
// Called by ops/ and the region; calls the quantize and range micro-kernels.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <vector>

#include "dispatch.h"
#include "image_rows.h"
#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"
#include "quantize_rule.h"

namespace octavo {
namespace {

// 2^18 floats at 0.15 ns (memory speed of one core) are 40 us.
constexpr int64_t kGrain = int64_t{1} << 18;
// Runs are cut at multiples of this, so that threads share no cache line of codes.
constexpr int64_t kBlock = 4096;

template <class F>
void for_each_block(int64_t count, F&& f) {
  parallel_for(0, (count + kBlock - 1) / kBlock, kGrain / kBlock, [&](int64_t begin, int64_t end) {
    f(begin * kBlock, std::min(count, end * kBlock) - begin * kBlock);
  });
}

// torch leaves the strides of dimensions of size 1 open: these predicates ignore them.
bool planes(const FloatImage& x) { return x.w == 1 || x.stride_w == 1; }
bool pixels(const FloatImage& x) { return x.c == 1 || x.stride_c == 1; }
bool dense_rows_of_pixels(const FloatImage& x) {
  return pixels(x) && (x.w == 1 || x.stride_w == x.c);
}
bool rows_follow(const FloatImage& x, int64_t row) { return x.h == 1 || x.stride_h == row; }

float* at(const FloatImage& x, int64_t n, int64_t row, int64_t column) {
  return x.data + n * x.stride_n + row * x.stride_h + column * x.stride_w;
}

// Any strides: 16 channels x 64 pixels at a time pass through a buffer of planes.
constexpr int64_t kTileChannels = 16, kTilePixels = 64;
struct Tile {
  float values[kTileChannels * kTilePixels];
};

template <class F>
void for_each_tile(int64_t width, int64_t channels, F&& f) {
  for (int64_t p = 0; p < width; p += kTilePixels) {
    for (int64_t c = 0; c < channels; c += kTileChannels) {
      f(p, std::min(kTilePixels, width - p), c, std::min(kTileChannels, channels - c));
    }
  }
}

// One row (or several that follow one another) of `width` pixels at x, q.
void quantize_row(const ElementTable& t, const FloatImage& src, const float* x, int64_t width,
                  const QuantizeRule& rule, uint8_t* q, int64_t pixel_pitch) {
  if (dense_rows_of_pixels(src) && pixel_pitch == src.c) {
    t.quantize_f32_u8(x, width * src.c, rule, q);
  } else if (planes(src) || width == 1) {
    t.quantize_planes_f32_u8(x, src.stride_c, width, src.c, rule, q, pixel_pitch);
  } else if (pixels(src)) {
    for (int64_t i = 0; i < width; ++i) {
      t.quantize_f32_u8(x + i * src.stride_w, src.c, rule, q + i * pixel_pitch);
    }
  } else {
    Tile tile;
    for_each_tile(width, src.c, [&](int64_t p, int64_t pixel_count, int64_t c, int64_t channels) {
      for (int64_t j = 0; j < channels; ++j) {
        const float* from = x + p * src.stride_w + (c + j) * src.stride_c;
        for (int64_t i = 0; i < pixel_count; ++i) {
          tile.values[j * kTilePixels + i] = from[i * src.stride_w];
        }
      }
      t.quantize_planes_f32_u8(tile.values, kTilePixels, pixel_count, channels, rule,
                               q + p * pixel_pitch + c, pixel_pitch);
    });
  }
}

// One row (or several that follow one another) of `width` pixels at q, y.
void dequantize_row(const ElementTable& t, const uint8_t* q, int64_t pixel_pitch, int64_t width,
                    const QuantParams& params, const FloatImage& dst, float* y) {
  const float scale = params.scale;
  const int32_t zero_point = params.zero_point;
  if (dense_rows_of_pixels(dst) && pixel_pitch == dst.c) {
    t.dequantize_u8_f32(q, width * dst.c, scale, zero_point, y);
  } else if (planes(dst) || width == 1) {
    t.dequantize_planes_u8_f32(q, pixel_pitch, width, dst.c, scale, zero_point, y, dst.stride_c);
  } else if (pixels(dst)) {
    for (int64_t i = 0; i < width; ++i) {
      t.dequantize_u8_f32(q + i * pixel_pitch, dst.c, scale, zero_point, y + i * dst.stride_w);
    }
  } else {
    Tile tile;
    for_each_tile(width, dst.c, [&](int64_t p, int64_t pixel_count, int64_t c, int64_t channels) {
      t.dequantize_planes_u8_f32(q + p * pixel_pitch + c, pixel_pitch, pixel_count, channels, scale,
                                 zero_point, tile.values, kTilePixels);
      for (int64_t j = 0; j < channels; ++j) {
        float* to = y + p * dst.stride_w + (c + j) * dst.stride_c;
        for (int64_t i = 0; i < pixel_count; ++i) {
          to[i * dst.stride_w] = tile.values[j * kTilePixels + i];
        }
      }
    });
  }
}

// Rows join within an image where they follow one another in the codes and in the float image.
Joined extent_of(const Image& codes, const FloatImage& values) {
  const bool row_of_pixels = dense_rows_of_pixels(values) && dense_pixels(codes);
  const bool follow = row_of_pixels
                          ? rows_follow(values, values.w * values.c)
                          : planes(values) && values.w > 1 && rows_follow(values, values.w);
  return follow && joined(codes) != Joined::kRow ? Joined::kImage : Joined::kRow;
}

void quantize_samples(const FloatImage& src, const QuantParams* params, int64_t params_step,
                      const Image& dst) {
  if (src.c == 0) return;
  const ElementTable& t = active_table().element;
  for_each_run(src.n, src.h, src.w, extent_of(dst, src), kGrain / src.c,
               [&](int64_t n, int64_t row, int64_t column, int64_t width) {
                 quantize_row(t, src, at(src, n, row, column), width,
                              rule_of(params[n * params_step]), pixel(dst, n, row, column),
                              dst.pixel_pitch);
               });
}

// -0 and 0 are equal, and which of them survives depends on the order: +0 always.
struct Range {
  float min = std::numeric_limits<float>::infinity();
  float max = -std::numeric_limits<float>::infinity();
};

// Widens the range of sample n by one row, or by the whole sample where it is one block of memory.
void widen(const ElementTable& t, const FloatImage& x, int64_t n, int64_t row, Range* range) {
  const float* from = at(x, n, row, 0);
  if (dense_rows_of_pixels(x)) {
    t.range_f32(from, x.w * x.c, &range->min, &range->max);
  } else if (planes(x)) {
    for (int64_t c = 0; c < x.c; ++c)
      t.range_f32(from + c * x.stride_c, x.w, &range->min, &range->max);
  } else {
    Tile tile;
    for_each_tile(x.w, x.c, [&](int64_t p, int64_t pixel_count, int64_t c, int64_t channels) {
      for (int64_t j = 0; j < channels; ++j) {
        for (int64_t i = 0; i < pixel_count; ++i) {
          tile.values[j * pixel_count + i] = from[(p + i) * x.stride_w + (c + j) * x.stride_c];
        }
      }
      t.range_f32(tile.values, channels * pixel_count, &range->min, &range->max);
    });
  }
}

bool one_block(const FloatImage& x) {
  const bool as_pixels = dense_rows_of_pixels(x) && rows_follow(x, x.w * x.c);
  const bool as_planes = planes(x) && rows_follow(x, x.w) && (x.c == 1 || x.stride_c == x.h * x.w);
  return as_pixels || as_planes;
}

QuantParams params_in_default_modes(float min, float max, int32_t max_code) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  const float lo = min < 0.0f ? std::max(min, -kLargest) : 0.0f;
  const float hi = max > 0.0f ? std::min(max, kLargest) : 0.0f;
  const float range = std::min(hi - lo, kLargest);
  const float codes = static_cast<float>(max_code);
  const float scale = std::max(range / codes, kMinScale);
  const float zero = std::min(std::max(-lo / scale, 0.0f), codes);
  return {scale, static_cast<int32_t>((zero + 0x1.8p23f) - 0x1.8p23f), max_code};
}

}  // namespace

void quantize(const float* x, int64_t count, QuantParams p, uint8_t* q) {
  const ElementTable& t = active_table().element;
  for_each_block(count, [&](int64_t first, int64_t size) {
    t.quantize_f32_u8(x + first, size, rule_of(p), q + first);
  });
}

void quantize_per_channel(const float* x, int64_t outer, int64_t channels, int64_t inner,
                          const float* scale, int32_t qmin, int32_t qmax, int8_t* q) {
  const ElementTable& t = active_table().element;
  const auto lo = static_cast<float>(qmin), hi = static_cast<float>(qmax);
  if (inner == 1) {
    std::vector<float> inverse(static_cast<size_t>(channels));
    parallel_for(0, 1, 1, [&](int64_t, int64_t) {
      for (int64_t c = 0; c < channels; ++c) inverse[c] = 1.0f / scale[c];
    });
    parallel_for(0, outer, kGrain / std::max<int64_t>(channels, 1),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t o = begin; o < end; ++o) {
                     t.quantize_columns_f32_s8(x + o * channels, channels, inverse.data(), lo, hi,
                                               q + o * channels);
                   }
                 });
    return;
  }
  parallel_for(0, outer * channels, kGrain / std::max<int64_t>(inner, 1),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const QuantizeRule rule{1.0f / scale[i % channels], lo, hi, 0};
                   t.quantize_f32_s8(x + i * inner, inner, rule, q + i * inner);
                 }
               });
}

void dequantize(const uint8_t* q, int64_t count, QuantParams p, float* y) {
  const ElementTable& t = active_table().element;
  for_each_block(count, [&](int64_t first, int64_t size) {
    t.dequantize_u8_f32(q + first, size, p.scale, p.zero_point, y + first);
  });
}

void quantize_image(const FloatImage& src, QuantParams p, const Image& dst) {
  quantize_samples(src, &p, 0, dst);
}

void quantize_image_per_sample(const FloatImage& src, const QuantParams* params, const Image& dst) {
  quantize_samples(src, params, 1, dst);
}

void dequantize_image(const Image& src, QuantParams p, const FloatImage& dst) {
  if (src.c == 0) return;
  const ElementTable& t = active_table().element;
  for_each_run(src.n, src.h, src.w, extent_of(src, dst), kGrain / src.c,
               [&](int64_t n, int64_t row, int64_t column, int64_t width) {
                 dequantize_row(t, pixel(src, n, row, column), src.pixel_pitch, width, p, dst,
                                at(dst, n, row, column));
               });
}

void copy_image(const FloatImage& src, const FloatImage& dst) {
  if (src.c == 0) return;
  // Both images are read and written in whole cache lines: 16 channels of 16 pixels are 16 lines in
  // each.
  constexpr int64_t kSide = 16;
  parallel_for(0, src.n * src.h, kGrain / std::max<int64_t>(src.w * src.c, 1),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const float* from = at(src, i / src.h, i % src.h, 0);
                   float* to = at(dst, i / src.h, i % src.h, 0);
                   if (planes(src) && planes(dst)) {
                     for (int64_t c = 0; c < src.c; ++c) {
                       std::memcpy(to + c * dst.stride_c, from + c * src.stride_c,
                                   src.w * sizeof(float));
                     }
                     continue;
                   }
                   if (dense_rows_of_pixels(src) && dense_rows_of_pixels(dst)) {
                     std::memcpy(to, from, src.w * src.c * sizeof(float));
                     continue;
                   }
                   for (int64_t p0 = 0; p0 < src.w; p0 += kSide) {
                     for (int64_t c0 = 0; c0 < src.c; c0 += kSide) {
                       for (int64_t p = p0; p < std::min(src.w, p0 + kSide); ++p) {
                         for (int64_t c = c0; c < std::min(src.c, c0 + kSide); ++c) {
                           to[p * dst.stride_w + c * dst.stride_c] =
                               from[p * src.stride_w + c * src.stride_c];
                         }
                       }
                     }
                   }
                 }
               });
}

QuantParams params_of_range(float min, float max, int32_t max_code) {
  QuantParams result;
  parallel_for(0, 1, 1,
               [&](int64_t, int64_t) { result = params_in_default_modes(min, max, max_code); });
  return result;
}

void dynamic_params(const FloatImage& src, int32_t max_code, QuantParams* params) {
  const ElementTable& t = active_table().element;
  std::vector<Range> ranges(static_cast<size_t>(src.n));
  std::mutex merging;
  auto merge = [&](int64_t n, const Range& part) {
    const std::lock_guard<std::mutex> lock(merging);
    ranges[n].min = std::min(ranges[n].min, part.min);
    ranges[n].max = std::max(ranges[n].max, part.max);
  };
  const int64_t sample = src.c * src.h * src.w;
  if (sample > 0 && one_block(src)) {
    const int64_t blocks = (sample + kBlock - 1) / kBlock;
    parallel_for(0, src.n * blocks, kGrain / kBlock, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end;) {
        const int64_t n = i / blocks, first = i % blocks;
        const int64_t last = std::min(blocks, first + end - i);
        Range part;
        t.range_f32(src.data + n * src.stride_n + first * kBlock,
                    std::min(sample, last * kBlock) - first * kBlock, &part.min, &part.max);
        merge(n, part);
        i += last - first;
      }
    });
  } else if (sample > 0) {
    parallel_for(0, src.n * src.h, kGrain / (src.c * src.w), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end;) {
        const int64_t n = i / src.h;
        Range part;
        for (; i < end && i / src.h == n; ++i) widen(t, src, n, i % src.h, &part);
        merge(n, part);
      }
    });
  }
  parallel_for(0, 1, 1, [&](int64_t, int64_t) {
    for (int64_t n = 0; n < src.n; ++n) {
      params[n] = params_in_default_modes(ranges[n].min, ranges[n].max, max_code);
    }
  });
}

void fill_halo(const Image& image, uint8_t code) {
  if (image.halo == 0 || image.c == 0) return;
  const int64_t halo = image.halo;
  const int64_t side = halo * image.pixel_pitch;
  auto fill = [&](uint8_t* first, int64_t pixel_count) {
    if (dense_pixels(image)) {
      std::memset(first, code, pixel_count * image.c);
    } else {
      for (int64_t p = 0; p < pixel_count; ++p)
        std::memset(first + p * image.pixel_pitch, code, image.c);
    }
  };
  const int64_t bytes = 2 * halo * (image.w + image.h + 2 * halo) * image.c;
  // memset of short runs: about 10 bytes a nanosecond.
  parallel_for(0, image.n, kGrain / std::max<int64_t>(bytes, 1), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t row = -halo; row < image.h + halo; ++row) {
        uint8_t* first = pixel(image, n, row, 0);
        if (row < 0 || row >= image.h) {
          fill(first - side, image.w + 2 * halo);
        } else {
          fill(first - side, halo);
          fill(first + image.w * image.pixel_pitch, halo);
        }
      }
    }
  });
}

}  // namespace octavo

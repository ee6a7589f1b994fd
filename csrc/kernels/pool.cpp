// Drivers of pooling: which taps of each window lie inside the image, and runs of windows that are
// alike. Called by the region; calls the window micro-kernels.
#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "image_rows.h"
#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"

namespace octavo {
namespace {

// Codes read that are worth a thread: 2^19 at 0.08 ns are 40 us.
constexpr int64_t kGrain = int64_t{1} << 19;

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Taps first .. last - 1 of a window along one axis that lie inside [0, size); `start` is tap 0's
/// position.
struct Taps {
  int64_t start, first, last;
  int64_t count() const { return last - first; }
};

Taps taps_inside(int64_t start, int64_t kernel, int64_t dilation, int64_t size) {
  const int64_t first = start >= 0 ? 0 : ceil_divide(-start, dilation);
  const int64_t last = start >= size ? 0 : std::min(kernel, ceil_divide(size - start, dilation));
  return {start, std::min(first, kernel), std::max(last, std::min(first, kernel))};
}

/// Calls f(n, y, x, windows, rows, cols) for runs of windows along x that have equal taps.
template <class F>
void for_each_window_run(const Image& in, const ConvGeometry& g, const Image& out, F&& f) {
  const int64_t row_codes = out.w * out.c * g.kernel_h * g.kernel_w;
  parallel_for(
      0, out.n * out.h, kGrain / std::max<int64_t>(row_codes, 1), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t n = i / out.h, y = i % out.h;
          const Taps rows = taps_inside(y * g.stride_h - g.pad_top, g.kernel_h, g.dilation_h, in.h);
          for (int64_t x = 0; x < out.w;) {
            const Taps cols =
                taps_inside(x * g.stride_w - g.pad_left, g.kernel_w, g.dilation_w, in.w);
            int64_t windows = 1;
            if (cols.count() == g.kernel_w) {
              // All windows up to the last whose last tap is inside.
              const int64_t room = in.w - 1 - (g.kernel_w - 1) * g.dilation_w - cols.start;
              windows = std::min(out.w - x, room / g.stride_w + 1);
            }
            f(n, y, x, windows, rows, cols);
            x += windows;
          }
        }
      });
}

const uint8_t* first_tap(const Image& in, int64_t n, const Taps& rows, const Taps& cols,
                         const ConvGeometry& g) {
  return pixel(in, n, rows.start + rows.first * g.dilation_h,
               cols.start + cols.first * g.dilation_w);
}

Window window_of(const Image& in, const Taps& rows, const Taps& cols, const ConvGeometry& g) {
  return {rows.count(), cols.count(), g.dilation_h * in.row_pitch, g.dilation_w * in.pixel_pitch};
}

// Size of a window clipped to the padded image, as torch counts it (average pooling has no
// dilation).
int64_t clipped(int64_t start, int64_t kernel, int64_t size, int64_t pad_after) {
  return std::min(start + kernel, size + pad_after) - start;
}

// A window of more than kMaxAverageTaps: sums in int64. Such images are rare and large, so speed is
// memory's.
void average_huge_window(const uint8_t* x, const Window& window, int64_t channels, int32_t z,
                         float m, float offset, float lo, float hi, uint8_t* out) {
  for (int64_t c = 0; c < channels; ++c) {
    int64_t sum = -z * window.rows * window.cols;
    for (int64_t i = 0; i < window.rows; ++i) {
      for (int64_t j = 0; j < window.cols; ++j)
        sum += x[i * window.row_step + j * window.col_step + c];
    }
    const float v = std::fmaf(static_cast<float>(sum), m, offset);
    const float clamped = std::min(std::max(lo, v), hi);
    out[c] = static_cast<uint8_t>((clamped + 0x1.8p23f) - 0x1.8p23f);
  }
}

void average(const ElementTable& t, const uint8_t* x, const Window& window, const PixelRun& run,
             int32_t z, float m, float offset, float lo, float hi, uint8_t* out) {
  const int64_t taps = window.rows * window.cols;
  if (taps > kMaxAverageTaps) {
    for (int64_t i = 0; i < run.pixels; ++i) {
      average_huge_window(x + i * run.in_step, window, run.channels, z, m, offset, lo, hi,
                          out + i * run.out_step);
    }
    return;
  }
  t.average_windows_u8(x, window, run, {static_cast<int32_t>(-z * taps), m, offset, lo, hi}, out);
}

// Adaptive windows along one axis.
int64_t adaptive_start(int64_t i, int64_t in, int64_t out) { return i * in / out; }
int64_t adaptive_end(int64_t i, int64_t in, int64_t out) { return ceil_divide((i + 1) * in, out); }

/// Calls f(x, window, run, out) for every output pixel and block of channels: global pooling has
/// one pixel only.
template <class F>
void for_each_adaptive_window(const Image& in, const Image& out, F&& f) {
  constexpr int64_t kChannels = 256;
  const int64_t blocks = ceil_divide(out.c, kChannels);
  const int64_t windows = out.h * out.w * blocks;
  const int64_t window_codes = ceil_divide(in.h * in.w * in.c, std::max<int64_t>(windows, 1));
  parallel_for(
      0, out.n * windows, kGrain / std::max<int64_t>(window_codes, 1),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t c = i % blocks * kChannels;
          const int64_t x = i / blocks % out.w, y = i / blocks / out.w % out.h, n = i / windows;
          const int64_t top = adaptive_start(y, in.h, out.h), left = adaptive_start(x, in.w, out.w);
          const Window window{adaptive_end(y, in.h, out.h) - top,
                              adaptive_end(x, in.w, out.w) - left, in.row_pitch, in.pixel_pitch};
          const PixelRun run{1, std::min(kChannels, out.c - c), 0, 0};
          f(pixel(in, n, top, left) + c, window, run, pixel(out, n, y, x) + c);
        }
      });
}

}  // namespace

void max_pool(const Image& x, const ConvGeometry& g, const Image& out) {
  const ElementTable& t = active_table().element;
  for_each_window_run(
      x, g, out,
      [&](int64_t n, int64_t row, int64_t column, int64_t windows, const Taps& rows,
          const Taps& cols) {
        const PixelRun run{windows, out.c, g.stride_w * x.pixel_pitch, out.pixel_pitch};
        t.max_windows_u8(first_tap(x, n, rows, cols, g), window_of(x, rows, cols, g), run,
                         pixel(out, n, row, column));
      });
}

void average_pool(const Image& x, const AveragePool& p, int32_t z, float m, float offset, float lo,
                  float hi, const Image& out) {
  const ElementTable& t = active_table().element;
  const ConvGeometry& g = p.window;
  for_each_window_run(
      x, g, out,
      [&](int64_t n, int64_t row, int64_t column, int64_t windows, const Taps& rows,
          const Taps& cols) {
        // Runs of several windows lie inside the image, so their divisors are equal.
        int64_t divisor = p.divisor_override;
        if (divisor <= 0 && p.count_include_pad) {
          divisor = clipped(rows.start, g.kernel_h, x.h, p.pad_bottom) *
                    clipped(cols.start, g.kernel_w, x.w, p.pad_right);
        } else if (divisor <= 0) {
          divisor = rows.count() * cols.count();
        }
        // An empty window gives the code of 0, as torch.
        const float quotient = m / static_cast<float>(std::max<int64_t>(divisor, 1));
        const PixelRun run{windows, out.c, g.stride_w * x.pixel_pitch, out.pixel_pitch};
        average(t, first_tap(x, n, rows, cols, g), window_of(x, rows, cols, g), run, z, quotient,
                offset, lo, hi, pixel(out, n, row, column));
      });
}

void adaptive_average_pool(const Image& x, int32_t z, float m, float offset, float lo, float hi,
                           const Image& out) {
  const ElementTable& t = active_table().element;
  for_each_adaptive_window(
      x, out, [&](const uint8_t* from, const Window& window, const PixelRun& run, uint8_t* to) {
        const float quotient = m / static_cast<float>(window.rows * window.cols);
        average(t, from, window, run, z, quotient, offset, lo, hi, to);
      });
}

void adaptive_max_pool(const Image& x, const Image& out) {
  const ElementTable& t = active_table().element;
  for_each_adaptive_window(
      x, out, [&](const uint8_t* from, const Window& window, const PixelRun& run, uint8_t* to) {
        t.max_windows_u8(from, window, run, to);
      });
}

}  // namespace octavo

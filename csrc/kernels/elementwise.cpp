// Drivers of work on single codes: add, multiply, affine, tables. Called by the region; calls the
// elementwise micro-kernels on the longest runs that all images share.
#include <algorithm>

#include "dispatch.h"
#include "image_rows.h"
#include "kernel_table.h"
#include "kernels.h"

namespace octavo {
namespace {

// 2^19 codes at 0.08 ns are 40 us.
constexpr int64_t kGrain = int64_t{1} << 19;

int64_t pixel_grain(const Image& x) { return kGrain / std::max<int64_t>(x.c, 1); }

Joined joined(const Image& a, const Image& b) { return std::min(joined(a), joined(b)); }
Joined joined(const Image& a, const Image& b, const Image& c) {
  return std::min(joined(a, b), joined(c));
}

// f(a, b, count, out) on contiguous codes of two inputs.
template <class F>
void for_each_pair(const Image& a, const Image& b, const Image& out, F&& f) {
  const bool dense = dense_pixels(a) && dense_pixels(b) && dense_pixels(out);
  for_each_run(out.n, out.h, out.w, joined(a, b, out), pixel_grain(out),
               [&](int64_t n, int64_t row, int64_t column, int64_t pixels) {
                 const uint8_t* pa = pixel(a, n, row, column);
                 const uint8_t* pb = pixel(b, n, row, column);
                 uint8_t* po = pixel(out, n, row, column);
                 if (dense) {
                   f(pa, pb, pixels * out.c, po);
                   return;
                 }
                 for (int64_t p = 0; p < pixels; ++p) {
                   f(pa + p * a.pixel_pitch, pb + p * b.pixel_pitch, out.c,
                     po + p * out.pixel_pitch);
                 }
               });
}

// f(x, run, out, n) on rows of pixels of one input; runs end with the image where `by_image`.
template <class F>
void for_each_row(const Image& x, const Image& out, bool by_image, F&& f) {
  Joined extent = joined(x, out);
  if (by_image) extent = std::min(extent, Joined::kImage);
  for_each_run(out.n, out.h, out.w, extent, pixel_grain(out),
               [&](int64_t n, int64_t row, int64_t column, int64_t pixels) {
                 const PixelRun run{pixels, out.c, x.pixel_pitch, out.pixel_pitch};
                 f(pixel(x, n, row, column), run, pixel(out, n, row, column), n);
               });
}

}  // namespace

void add(const Image& a, const Image& b, float ma, float mb, float offset, float lo, float hi,
         const Image& out) {
  const ElementTable& t = active_table().element;
  const AddRule rule{ma, mb, offset, lo, hi};
  for_each_pair(a, b, out, [&](const uint8_t* pa, const uint8_t* pb, int64_t count, uint8_t* po) {
    t.add_u8u8_u8(pa, pb, count, rule, po);
  });
}

void multiply(const Image& a, const Image& b, int32_t za, int32_t zb, float m, float offset,
              float lo, float hi, const Image& out) {
  const ElementTable& t = active_table().element;
  const MultiplyRule rule{za, zb, m, offset, lo, hi};
  if (b.h == 1 && b.w == 1 && (a.h != 1 || a.w != 1)) {
    for_each_row(a, out, true, [&](const uint8_t* pa, const PixelRun& run, uint8_t* po, int64_t n) {
      t.multiply_pixels_u8u8_u8(pa, pixel(b, n, 0, 0), run, rule, po);
    });
    return;
  }
  for_each_pair(a, b, out, [&](const uint8_t* pa, const uint8_t* pb, int64_t count, uint8_t* po) {
    t.multiply_u8u8_u8(pa, pb, count, rule, po);
  });
}

void affine(const Image& x, const float* m, const float* offset, float lo, float hi,
            const Image& out) {
  const ElementTable& t = active_table().element;
  for_each_row(x, out, false, [&](const uint8_t* px, const PixelRun& run, uint8_t* po, int64_t) {
    t.affine_pixels_u8_u8(px, run, m, offset, lo, hi, po);
  });
}

void apply_table(const Image& x, const uint8_t* table, bool per_channel, const Image& out) {
  const ElementTable& t = active_table().element;
  for_each_row(x, out, false, [&](const uint8_t* px, const PixelRun& run, uint8_t* po, int64_t) {
    if (per_channel) {
      t.channel_table_u8_u8(px, run, table, po);
    } else if (run.in_step == run.channels && run.out_step == run.channels) {
      t.table_u8_u8(px, run.pixels * run.channels, table, po);
    } else {
      for (int64_t p = 0; p < run.pixels; ++p) {
        t.table_u8_u8(px + p * run.in_step, run.channels, table, po + p * run.out_step);
      }
    }
  });
}

}  // namespace octavo

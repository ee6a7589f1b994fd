// The order in which a job's pixels are taken, tile by tile, and where each tile's results go.
// Included by gemm.cpp.
#pragma once

#include "work.h"

namespace octavo::OCTAVO_AMX {
namespace {

/// Walks over the grid in tiles of at most 16 pixels whose activations have one pitch. The whole
/// grid is one line if a row's pitch is a multiple of a pixel's (pixels between two rows are then
/// computed and not used); otherwise every row is a line. The last tile of a line is moved back so
/// that it ends with the line: nothing beyond is read or written. Pixels that it computes a second
/// time are stored twice where results are linear, else once.
class Walk {
 public:
  explicit Walk(const GemmJob& job, bool f32) : w_(job.w), h_(job.h) {
    a_pixel_ = job.a_pixel_pitch, a_row_ = job.a_row_pitch;
    if (f32) {
      out_ = reinterpret_cast<uint8_t*>(job.out_f32);
      out_pixel_ = job.f32_pixel_pitch * 4, out_row_ = job.f32_row_pitch * 4;
    } else {
      out_ = job.out, out_pixel_ = job.out_pixel_pitch, out_row_ = job.out_row_pitch;
      residual_ = job.residual;
      residual_pixel_ = job.residual_pixel_pitch, residual_row_ = job.residual_row_pitch;
    }
    a_ = job.a;
    if (w_ == 1) {  // a column of pixels is a row
      w_ = h_, h_ = 1;
      a_pixel_ = a_row_, out_pixel_ = out_row_, residual_pixel_ = residual_row_;
    }
    length_ = w_, lines_ = h_, period_ = w_;
    if (h_ > 1 && a_pixel_ > 0 && a_row_ % a_pixel_ == 0 && a_row_ / a_pixel_ >= w_) {
      const int64_t pitch = a_row_ / a_pixel_;
      const int64_t whole = (h_ - 1) * pitch + w_;
      if ((whole + 15) / 16 < h_ * ((w_ + 15) / 16)) {
        length_ = whole, lines_ = 1, period_ = pitch;
      }
    }
    tile_rows_ = length_ < 16 ? length_ : 16;
    tiles_in_line_ = (length_ + 15) / 16;
    const bool follows =
        lines_ == h_ || (out_row_ == period_ * out_pixel_ &&
                         (residual_ == nullptr || residual_row_ == period_ * residual_pixel_) &&
                         (period_ == w_ || (!f32 && job.gap_code >= 0)));
    const bool in_place = residual_ != nullptr && residual_ == out_;
    linear_ = follows && tile_rows_ == 16 && !in_place;
    gaps_ = linear_ && lines_ != h_ && period_ != w_;
  }

  int64_t a_pitch() const { return a_pixel_; }
  int64_t out_pitch() const { return out_pixel_; }
  int64_t residual_pitch() const { return residual_pixel_; }
  int64_t tile_rows() const { return tile_rows_; }
  int64_t tiles() const { return lines_ * tiles_in_line_; }
  /// Whether results of a tile have one pitch too.
  bool linear() const { return linear_; }

  /// The next tile's number among all, and where any tile's activations begin.
  int64_t tile() const { return line_ * tiles_in_line_ + tile_; }
  const uint8_t* activations(int64_t tile) const {
    const int64_t line = tile / tiles_in_line_;
    return a_ + line * a_row_ + first_pixel(tile % tiles_in_line_) * a_pixel_;
  }

  void restart() { line_ = tile_ = x_ = y_ = 0; }

  /// Tile row `i` of `block` becomes the next tile; returns where its activations begin. `element`
  /// is the size of a result.
  template <bool kLinear>
  const uint8_t* next(Work& work, Block& block, int i, int64_t element) {
    const int64_t first = first_pixel(tile_);
    const uint8_t* a = a_ + line_ * a_row_ + first * a_pixel_;
    const int64_t offset = block.column * element;
    block.pixel[i] = first;
    if constexpr (kLinear) {
      block.line[i] = out_ + line_ * out_row_ + first * out_pixel_ + offset;
      if (residual_ != nullptr) {
        block.residual_line[i] =
            residual_ + line_ * residual_row_ + first * residual_pixel_ + offset;
      }
    } else {
      scatter(work, block, i, offset, tile_ * 16 - first);
    }
    if (++tile_ == tiles_in_line_) {
      tile_ = 0, x_ = 0, y_ = ++line_;
    } else if (!kLinear) {
      for (x_ += 16; x_ >= period_; x_ -= period_) ++y_;
    }
    return a;
  }

  /// Gives the pixels between rows, which linear results have run over, their code back.
  void mend_gaps(const GemmJob& job) const {
    if (!gaps_) return;
    const __m512i code = _mm512_set1_epi8(static_cast<char>(job.gap_code));
    for (int64_t y = 0; y + 1 < h_; ++y) {
      for (int64_t x = w_; x < period_; ++x) {
        uint8_t* const pixel = out_ + y * out_row_ + x * out_pixel_;
        for (int64_t column = 0; column < job.n; column += 64) {
          const int64_t left = job.n - column;
          const auto mask = ~uint64_t{0} >> (left < 64 ? 64 - left : 0);
          _mm512_mask_storeu_epi8(pixel + column, mask, code);
        }
      }
    }
  }

 private:
  int64_t first_pixel(int64_t tile) const {
    return tile == tiles_in_line_ - 1 && length_ >= 16 ? length_ - 16 : tile * 16;
  }

  void scatter(Work& work, Block& block, int i, int64_t offset, int64_t skip) {
    int64_t x = x_ - skip, y = y_;
    while (x < 0) x += period_, --y;
    block.pixel[i] = x;
    int64_t r = 0;
    while (r < tile_rows_) {
      int64_t run = x < w_ ? w_ - x : period_ - x;
      if (run > tile_rows_ - r) run = tile_rows_ - r;
      if (x < w_) {
        uint8_t* out = out_ + y * out_row_ + x * out_pixel_ + offset;
        for (int64_t k = 0; k < run; ++k) block.out[16 * i + r + k] = out + k * out_pixel_;
        if (residual_ != nullptr) {
          const uint8_t* residual = residual_ + y * residual_row_ + x * residual_pixel_ + offset;
          for (int64_t k = 0; k < run; ++k) {
            block.residual[16 * i + r + k] = residual + k * residual_pixel_;
          }
        }
      } else {
        discard(work, block, 16 * i + r, run);
      }
      r += run, x += run;
      if (x >= period_) x = 0, ++y;
    }
    discard(work, block, 16 * i + r, 16 - r);
    discard(work, block, 16 * i, skip);
  }

  static void discard(Work& work, Block& block, int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r) {
      block.out[r] = work.trash;
      block.residual[r] = work.zeros;
    }
  }

  const uint8_t* a_;
  uint8_t* out_;
  const uint8_t* residual_ = nullptr;
  int64_t w_, h_;
  int64_t a_pixel_, a_row_, out_pixel_, out_row_;
  int64_t residual_pixel_ = 0, residual_row_ = 0;
  int64_t length_, lines_, period_;  // period: pixels of a line from one row to the next
  int64_t tile_rows_, tiles_in_line_;
  bool linear_, gaps_;
  int64_t line_ = 0, tile_ = 0, x_ = 0, y_ = 0;
};

}  // namespace
}  // namespace octavo::OCTAVO_AMX

// Maximum and average over windows of codes: the specification in plain loops. Called by pool.cpp
// through the table; calls nothing.
#include "../../kernel_table.h"

namespace octavo::scalar {
namespace {

void max_windows_u8(const uint8_t* x, const Window& window, const PixelRun& run, uint8_t* out) {
  for (int64_t p = 0; p < run.pixels; ++p) {
    for (int64_t c = 0; c < run.channels; ++c) {
      uint8_t largest = 0;
      for (int64_t i = 0; i < window.rows; ++i) {
        for (int64_t j = 0; j < window.cols; ++j) {
          const uint8_t v = x[p * run.in_step + i * window.row_step + j * window.col_step + c];
          largest = v > largest ? v : largest;
        }
      }
      out[p * run.out_step + c] = largest;
    }
  }
}

void average_windows_u8(const uint8_t* x, const Window& window, const PixelRun& run,
                        const AverageRule& rule, uint8_t* out) {
  for (int64_t p = 0; p < run.pixels; ++p) {
    for (int64_t c = 0; c < run.channels; ++c) {
      int32_t sum = rule.start;
      for (int64_t i = 0; i < window.rows; ++i) {
        for (int64_t j = 0; j < window.cols; ++j) {
          sum += x[p * run.in_step + i * window.row_step + j * window.col_step + c];
        }
      }
      float v = __builtin_fmaf(static_cast<float>(sum), rule.m, rule.offset);
      v = v > rule.lo ? v : rule.lo;
      v = v < rule.hi ? v : rule.hi;
      // Nearest even: the last mantissa bit of the sum is worth 1.
      out[p * run.out_step + c] = static_cast<uint8_t>((v + 0x1.8p23f) - 0x1.8p23f);
    }
  }
}

}  // namespace

void fill_pool(ElementTable& t) {
  t.max_windows_u8 = max_windows_u8;
  t.average_windows_u8 = average_windows_u8;
}

}  // namespace octavo::scalar

// Maximum and average over windows of codes, sixteen channels at a time. Called by pool.cpp through
// the table; calls nothing. isa/scalar/pool.cpp says what every result is.
#include "../../kernel_table.h"
#include "codes.h"

namespace octavo::neon_dotprod {
namespace {

void max_windows_u8(const uint8_t* x, const Window& window, const PixelRun& run, uint8_t* out) {
  for (int64_t p = 0; p < run.pixels; ++p) {
    for (int64_t c = 0; c < run.channels; c += 16) {
      const int64_t left = run.channels - c;
      uint8x16_t largest = vdupq_n_u8(0);
      for (int64_t i = 0; i < window.rows; ++i) {
        const uint8_t* tap = x + p * run.in_step + i * window.row_step + c;
        for (int64_t j = 0; j < window.cols; ++j, tap += window.col_step) {
          largest = vmaxq_u8(largest, load_codes(tap, left));
        }
      }
      store_codes(out + p * run.out_step + c, largest, left);
    }
  }
}

void average_windows_u8(const uint8_t* x, const Window& window, const PixelRun& run,
                        const AverageRule& rule, uint8_t* out) {
  const float32x4_t m = vdupq_n_f32(rule.m), offset = vdupq_n_f32(rule.offset);
  const float32x4_t lo = vdupq_n_f32(rule.lo), hi = vdupq_n_f32(rule.hi);
  for (int64_t p = 0; p < run.pixels; ++p) {
    for (int64_t c = 0; c < run.channels; c += 16) {
      const int64_t left = run.channels - c;
      // Partial sums may exceed 2^31; modulo 2^32 the last one is right.
      uint32x4_t sum[4];
      for (uint32x4_t& s : sum) s = vdupq_n_u32(static_cast<uint32_t>(rule.start));
      for (int64_t i = 0; i < window.rows; ++i) {
        const uint8_t* tap = x + p * run.in_step + i * window.row_step + c;
        for (int64_t j = 0; j < window.cols; ++j, tap += window.col_step) {
          const uint8x16_t codes = load_codes(tap, left);
          const uint16x8_t low = vmovl_u8(vget_low_u8(codes)), high = vmovl_high_u8(codes);
          sum[0] = vaddw_u16(sum[0], vget_low_u16(low));
          sum[1] = vaddw_high_u16(sum[1], low);
          sum[2] = vaddw_u16(sum[2], vget_low_u16(high));
          sum[3] = vaddw_high_u16(sum[3], high);
        }
      }
      Floats f;
      for (int k = 0; k < 4; ++k) {
        f.v[k] = vfmaq_f32(offset, vcvtq_f32_s32(vreinterpretq_s32_u32(sum[k])), m);
      }
      store_codes(out + p * run.out_step + c, narrow(f, lo, hi), left);
    }
  }
}

}  // namespace

void fill_pool(ElementTable& t) {
  t.max_windows_u8 = max_windows_u8;
  t.average_windows_u8 = average_windows_u8;
}

}  // namespace octavo::neon_dotprod

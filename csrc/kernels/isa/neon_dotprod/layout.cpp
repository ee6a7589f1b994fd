// Gather of channels by byte look-ups. Called by layout.cpp through the table; calls nothing.
// isa/scalar/layout.cpp says what every result is.
#include <arm_neon.h>

#include "../../kernel_table.h"

namespace octavo::neon_dotprod {
namespace {

// A look-up index of 16 and more (kNotHere) gives 0.
void gather_pixels_u8(const uint8_t* x, const PixelRun& run, const GatherBlock* blocks,
                      int64_t block_count, uint8_t* out) {
  for (int64_t p = 0; p < run.pixels; ++p, x += run.in_step, out += run.out_step) {
    for (int64_t b = 0; b < block_count; ++b) {
      const GatherBlock& block = blocks[b];
      uint8x16_t codes = vld1q_u8(block.fill);
      for (int64_t k = 0; k < block.windows; ++k) {
        const uint8x16_t found = vqtbl1q_u8(vld1q_u8(x + block.first[k]), vld1q_u8(block.index[k]));
        codes = vorrq_u8(codes, found);
      }
      vst1q_u8(out + block.to, codes);
    }
  }
}

}  // namespace

void fill_layout(ElementTable& t) { t.gather_pixels_u8 = gather_pixels_u8; }

}  // namespace octavo::neon_dotprod

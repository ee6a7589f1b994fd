// Gather of channels: the specification in plain loops. Called by layout.cpp through the table;
// calls nothing.
#include "../../kernel_table.h"

namespace octavo::scalar {
namespace {

void gather_pixels_u8(const uint8_t* x, const PixelRun& run, const GatherBlock* blocks,
                      int64_t block_count, uint8_t* out) {
  for (int64_t p = 0; p < run.pixels; ++p) {
    for (int64_t b = 0; b < block_count; ++b) {
      const GatherBlock& block = blocks[b];
      for (int64_t i = 0; i < 16; ++i) {
        uint8_t code = block.fill[i];
        for (int64_t k = 0; k < block.windows; ++k) {
          const uint8_t index = block.index[k][i];
          if (index != GatherBlock::kNotHere) code = x[p * run.in_step + block.first[k] + index];
        }
        out[p * run.out_step + block.to + i] = code;
      }
    }
  }
}

}  // namespace

void fill_layout(ElementTable& t) { t.gather_pixels_u8 = gather_pixels_u8; }

}  // namespace octavo::scalar

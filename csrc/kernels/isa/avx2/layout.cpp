// Gather of channels by byte shuffles. Called by layout.cpp through the table; calls nothing.
// isa/scalar/layout.cpp says what every result is.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx2 {
namespace {

inline __m128i load(const uint8_t* x) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
}

// One block of channels for `pixels` pixels; kWindows = 0: as many windows as the block has. A
// shuffle index with bit 7 set (kNotHere) gives 0.
template <int kWindows>
inline void gather_block(const uint8_t* x, const PixelRun& run, const GatherBlock& block,
                         int64_t pixels, uint8_t* out) {
  const int64_t windows = kWindows > 0 ? kWindows : block.windows;
  for (int64_t p = 0; p < pixels; ++p, x += run.in_step, out += run.out_step) {
    __m128i v = load(block.fill);
    for (int64_t k = 0; k < windows; ++k) {
      v = _mm_or_si128(v, _mm_shuffle_epi8(load(x + block.first[k]), load(block.index[k])));
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + block.to), v);
  }
}

void gather_pixels_u8(const uint8_t* x, const PixelRun& run, const GatherBlock* blocks,
                      int64_t block_count, uint8_t* out) {
  // Blocks outside and pixels inside keep indices in registers; 32 pixels at a time stay in L1.
  constexpr int64_t kPixels = 32;
  for (int64_t first = 0; first < run.pixels; first += kPixels) {
    const int64_t pixels = run.pixels - first < kPixels ? run.pixels - first : kPixels;
    const uint8_t* from = x + first * run.in_step;
    uint8_t* to = out + first * run.out_step;
    for (int64_t b = 0; b < block_count; ++b) {
      if (blocks[b].windows == 1) {
        gather_block<1>(from, run, blocks[b], pixels, to);
      } else if (blocks[b].windows == 2) {
        gather_block<2>(from, run, blocks[b], pixels, to);
      } else {
        gather_block<0>(from, run, blocks[b], pixels, to);
      }
    }
  }
}

}  // namespace

void fill_layout(ElementTable& t) { t.gather_pixels_u8 = gather_pixels_u8; }

}  // namespace octavo::avx2

// Products with packed low-bit weights on AVX2 without dot-product instructions. Filled into the
// row by table.cpp; called by kernels/lowbit.cpp. Codes below 16 times s8 add up to 2 * 15 * 128
// in a pair: vpmaddubsw does not saturate. Levels of a table may be anything, so they are always
// unpacked and widened.
#include "widening_dot.h"
#include "ymm_lowbit.h"

namespace octavo::avx2 {
namespace {

struct LowbitDot : WideningDot {
  static constexpr int kCodeRows = 1, kCodeVectors = 2;
  static OCTAVO_INLINE void add_codes(__m256i& sum, __m256i u, __m256i s) {
    const __m256i pairs = _mm256_maddubs_epi16(u, s);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

}  // namespace

void fill_lowbit(LowbitTable& table) {
  table.tile_rows = 1;
  table.packed_rows = 1;
  table.packed_rows_levels = 0;
  table.multiply_packed = multiply_packed<LowbitDot>;
  table.unpack_levels = unpack_levels;
  table.gemm_u8s8_groups = gemm_u8s8_groups<LowbitDot>;
  table.gemm_f32s8_groups = gemm_f32s8_groups;
  table.flip_u8_s8 = flip_u8_s8;
}

}  // namespace octavo::avx2

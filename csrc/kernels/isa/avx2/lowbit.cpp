// Products with packed low-bit weights on AVX2 without dot-product instructions. Filled into the
// row by table.cpp; called by kernels/lowbit.cpp. Codes below 16 times s8 add up to 2 * 15 * 128
// in a pair: vpmaddubsw does not saturate. Levels of a table may be anything, so they are always
// unpacked and widened. Look-ups serve every row above this one.
#include "widening_dot.h"
#include "ymm_lowbit.h"

namespace octavo::avx2 {
namespace {

struct LowbitDot : WideningDot {
  static constexpr int kCodeRows = 1;
  static constexpr bool kWholePanel = false;
  static OCTAVO_INLINE void add_codes(__m256i& sum, __m256i u, __m256i s) {
    const __m256i pairs = _mm256_maddubs_epi16(u, s);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

/// Eight codes at a time: they take job.bits bytes, a code lies in the four bytes from the one
/// where it begins, and reads beyond a row end in the scales after the codes.
void dequantize_row(const RowJob& job) {
  alignas(32) float table[256];
  if (job.kind == LowbitKind::kLevels) {
    for (int i = 0; i < 1 << job.bits; ++i) table[i] = static_cast<float>(job.levels[i]);
  }
  alignas(32) int32_t offset[8], shift[8];
  for (int i = 0; i < 8; ++i) {
    offset[i] = i * job.bits / 8;
    shift[i] = i * job.bits % 8;
  }
  const __m256i offsets = load(offset), shifts = load(shift);
  const int32_t largest = (1 << job.bits) - 1;
  const __m256i mask = _mm256_set1_epi32(largest);
  for (int64_t first = 0; first < job.count; first += job.group) {
    const int64_t g = first / job.group, left = job.count - first;
    const int64_t count = left < job.group ? left : job.group;
    int32_t zero = 1 << (job.bits - 1);
    if (job.kind == LowbitKind::kAffine) zero = job.zero[g];
    float scale;
    if (job.wide_scale != nullptr) {
      scale = *job.wide_scale;
    } else {
      const uint32_t bits = uint32_t{job.scale[g]} << 16;
      __builtin_memcpy(&scale, &bits, 4);
    }
    const uint8_t* codes = job.codes + first * job.bits / 8;  // groups begin at bytes
    float* y = job.y + first;
    for (int64_t i = 0; i < count; i += 8, codes += job.bits) {
      const int64_t columns = count - i;
      __m256i word;
      if (columns >= 8) {
        word = _mm256_i32gather_epi32(reinterpret_cast<const int*>(codes), offsets, 1);
      } else {
        uint8_t some[16] = {};
        __builtin_memcpy(some, codes, static_cast<size_t>((columns * job.bits + 7) / 8));
        word = _mm256_i32gather_epi32(reinterpret_cast<const int*>(some), offsets, 1);
      }
      const __m256i code = _mm256_and_si256(_mm256_srlv_epi32(word, shifts), mask);
      const __m256 level =
          job.kind == LowbitKind::kLevels
              ? _mm256_i32gather_ps(table, code, 4)
              : _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(zero)));
      store_columns(y + i, _mm256_mul_ps(level, _mm256_set1_ps(scale)), columns);
    }
  }
}

}  // namespace

void fill_lowbit(LowbitTable& table) {
  table.tile_rows = 1;
  table.packed_rows = INT64_MAX;
  table.packed_rows_levels = 0;
  table.multiply_packed = multiply_packed<LowbitDot>;
  table.unpack_levels = unpack_levels;
  table.gemm_u8s8_groups = gemm_u8s8_groups<LowbitDot>;
  table.gemm_f32s8_groups = gemm_f32s8_groups;
  table.flip_u8_s8 = flip_u8_s8;
  table.dequantize_row = dequantize_row;
}

}  // namespace octavo::avx2

// Products with packed low-bit weights by the VEX form of vpdpbusd. Filled into the row by
// table.cpp; called by kernels/lowbit.cpp.
#include "../avx2/ymm_lowbit.h"
#include "vnni_dot.h"

namespace octavo::avx_vnni {
namespace {

struct LowbitDot : VnniDot {
  static constexpr int kCodeRows = 2;
  static constexpr bool kWholePanel = true;
  static OCTAVO_INLINE void add_codes(__m256i& sum, __m256i u, __m256i s) { add(sum, u, s); }
};

}  // namespace

void fill_lowbit(LowbitTable& table) {
  table.tile_rows = 1;
  table.packed_rows = 6;
  table.packed_rows_levels = 6;
  table.multiply_packed = multiply_packed<LowbitDot>;
  table.multiply_packed_levels = multiply_packed_levels<LowbitDot>;
  table.unpack_levels = unpack_levels;
  table.gemm_u8s8_groups = gemm_u8s8_groups<LowbitDot>;
  table.gemm_f32s8_groups = gemm_f32s8_groups;
  table.flip_u8_s8 = flip_u8_s8;
}

}  // namespace octavo::avx_vnni

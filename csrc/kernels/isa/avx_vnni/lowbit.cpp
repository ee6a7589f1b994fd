// Products with packed low-bit weights by the VEX form of vpdpbusd. Filled into the row by
// table.cpp; called by kernels/lowbit.cpp.
#include "../avx2/ymm_lowbit.h"
#include "vnni_dot.h"

namespace octavo::avx_vnni {
namespace {

struct LowbitDot : VnniDot {
  template <class Codec>
  static constexpr int kCodeSums = 8;
  template <int kOperands>
  struct Products {
    OCTAVO_INLINE void begin(__m256i before) { sum = before; }
    template <bool kFirst>
    OCTAVO_INLINE void add(__m256i u, __m256i s) {
      VnniDot::add(sum, u, s);
    }
    OCTAVO_INLINE void end(__m256i& after) { after = sum; }
    __m256i sum;
  };
};

template <int kBits>
using Unsigned = Shuffled<kBits, 0x80>;

}  // namespace

void fill_lowbit(LowbitTable& table) {
  table.tile_rows = 1;
  table.packed_rows = 8;
  table.packed_rows_levels = 8;
  table.multiply_packed = multiply_packed<LowbitDot, Linear>;
  table.multiply_packed_levels = multiply_packed<LowbitDot, Unsigned>;
  table.unpack_levels = unpack_levels;
  table.gemm_u8s8_groups = gemm_u8s8_groups<LowbitDot>;
  table.gemm_f32s8_groups = gemm_f32s8_groups;
  table.flip_u8_s8 = flip_u8_s8;
}

}  // namespace octavo::avx_vnni

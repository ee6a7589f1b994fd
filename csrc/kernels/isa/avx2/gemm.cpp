// Dense products on AVX2 without dot-product instructions. Filled into the row by table.cpp; called
// by conv.cpp.
#include "widening_dot.h"
#include "ymm_gemm.h"

namespace octavo::avx2 {

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kVnni;
  table.gemm_u8s8_u8 = gemm_u8s8_u8<WideningDot>;
  table.gemm_u8s8_f32 = gemm_u8s8_f32<WideningDot>;
  table.gemm_u8s8_rows = gemm_u8s8_rows<WideningDot>;
}

}  // namespace octavo::avx2

// Dense products by the VEX form of vpdpbusd on 256-bit registers (CPUs without AVX-512). Filled
// into the row by table.cpp; called by product_dense.cpp.
#include "../avx2/ymm_gemm.h"
#include "vnni_dot.h"

namespace octavo::avx_vnni {

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kVnni;
  table.gemm_u8s8_u8 = gemm_u8s8_u8<InPanel<VnniDot>>;
  table.gemm_u8s8_f32 = gemm_u8s8_f32<InPanel<VnniDot>>;
  table.gemm_u8s8_rows = gemm_u8s8_rows<InPanel<VnniDot>>;
  table.split_panel = nullptr;
}

}  // namespace octavo::avx_vnni

// Dense products by the VEX form of vpdpbusd on 256-bit registers (CPUs without AVX-512). Filled
// into the row by table.cpp; called by conv.cpp.
#include "../avx2/ymm_gemm.h"
#include "vnni_dot.h"

namespace octavo::avx_vnni {
namespace {

struct PanelDot : VnniDot {
  static constexpr bool kRest = false;
  static void place_weights(const GemmJob& job, Place& place) { place_in_panel(job, place); }
};

}  // namespace

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kVnni;
  table.gemm_u8s8_u8 = gemm_u8s8_u8<PanelDot>;
  table.gemm_u8s8_f32 = gemm_u8s8_f32<PanelDot>;
  table.gemm_u8s8_rows = gemm_u8s8_rows<PanelDot>;
  table.split_panel = nullptr;
}

}  // namespace octavo::avx_vnni

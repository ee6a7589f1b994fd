// Dense products on AVX2 without dot-product instructions: jobs of many pixels on a split panel,
// others on the panel itself by widening. Filled into the row by table.cpp; called by conv.cpp.
#include "split_dot.h"
#include "widening_dot.h"
#include "ymm_gemm.h"

namespace octavo::avx2 {
namespace {

struct PanelDot : WideningDot {
  static constexpr bool kRest = false;
  static void place_weights(const GemmJob& job, Place& place) { place_in_panel(job, place); }
};

void to_u8(const GemmJob& job) {
  job.split != nullptr ? gemm_u8s8_u8<SplitDot>(job) : gemm_u8s8_u8<PanelDot>(job);
}
void to_f32(const GemmJob& job) {
  job.split != nullptr ? gemm_u8s8_f32<SplitDot>(job) : gemm_u8s8_f32<PanelDot>(job);
}
void to_rows(const GemmJob& job) {
  job.split != nullptr ? gemm_u8s8_rows<SplitDot>(job) : gemm_u8s8_rows<PanelDot>(job);
}

}  // namespace

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kVnni;
  table.gemm_u8s8_u8 = to_u8;
  table.gemm_u8s8_f32 = to_f32;
  table.gemm_u8s8_rows = to_rows;
  table.split_bytes = split_bytes;
  table.split_panel = split_panel;
}

}  // namespace octavo::avx2

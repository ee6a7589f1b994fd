// Dense products on AVX2 without dot-product instructions: weights of up to 7 bits are multiplied
// as they are, jobs of many pixels with 8-bit weights get a split panel, others widen the panel's
// weights. Filled into the row by table.cpp; called by product_dense.cpp.
#include "split_dot.h"
#include "widening_dot.h"
#include "ymm_gemm.h"

namespace octavo::avx2 {
namespace {

template <class Run>
void with_dot(const GemmJob& job, const Run& run) {
  if (job.narrow) {
    run.template operator()<InPanel<SplitDot>>();
  } else if (job.split != nullptr) {
    run.template operator()<SplitDot>();
  } else {
    run.template operator()<InPanel<WideningDot>>();
  }
}

void to_codes(const GemmJob& job) {
  with_dot(job, [&]<class Dot>() { gemm_u8s8_u8<Dot>(job); });
}
void to_floats(const GemmJob& job) {
  with_dot(job, [&]<class Dot>() { gemm_u8s8_f32<Dot>(job); });
}
void to_rows(const GemmJob& job) {
  with_dot(job, [&]<class Dot>() { gemm_u8s8_rows<Dot>(job); });
}

}  // namespace

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kVnni;
  table.gemm_u8s8_u8 = to_codes;
  table.gemm_u8s8_f32 = to_floats;
  table.gemm_u8s8_rows = to_rows;
  table.split_bytes = split_bytes;
  table.split_panel = split_panel;
}

}  // namespace octavo::avx2

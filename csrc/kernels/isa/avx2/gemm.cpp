// Dense products on AVX2 without dot-product instructions: weights of 7 bits and fewer need no
// care, jobs of many pixels get a split panel, others widen the panel's weights. Filled into the
// row by table.cpp; called by conv.cpp.
#include "split_dot.h"
#include "widening_dot.h"
#include "ymm_gemm.h"

namespace octavo::avx2 {
namespace {

template <class Dot>
struct InPanel : Dot {
  static constexpr bool kRest = false;
  static void place_weights(const GemmJob& job, Place& place) { place_in_panel(job, place); }
};

template <template <class> class Run>
void choose(const GemmJob& job) {
  if (job.narrow) {
    Run<InPanel<SplitDot>>::run(job);
  } else if (job.split != nullptr) {
    Run<SplitDot>::run(job);
  } else {
    Run<InPanel<WideningDot>>::run(job);
  }
}

template <class Dot>
struct ToCodes {
  static void run(const GemmJob& job) { gemm_u8s8_u8<Dot>(job); }
};
template <class Dot>
struct ToFloats {
  static void run(const GemmJob& job) { gemm_u8s8_f32<Dot>(job); }
};
template <class Dot>
struct ToRows {
  static void run(const GemmJob& job) { gemm_u8s8_rows<Dot>(job); }
};

}  // namespace

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kVnni;
  table.gemm_u8s8_u8 = choose<ToCodes>;
  table.gemm_u8s8_f32 = choose<ToFloats>;
  table.gemm_u8s8_rows = choose<ToRows>;
  table.split_bytes = split_bytes;
  table.split_panel = split_panel;
}

}  // namespace octavo::avx2

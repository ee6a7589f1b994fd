// All micro-kernels of the row avx_vnni: products by VEX dot-product instructions; the rest is
// avx2's.
#include "../../kernel_table.h"

namespace octavo::avx_vnni {

void fill_gemm(GemmTable& table);
void fill_depthwise(GemmTable& table);
void fill_lowbit(LowbitTable& table);

void fill(KernelTable& table) {
  fill_gemm(table.gemm);
  fill_depthwise(table.gemm);
  fill_lowbit(table.lowbit);
}

}  // namespace octavo::avx_vnni

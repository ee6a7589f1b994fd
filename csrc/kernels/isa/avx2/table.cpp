// All micro-kernels of the row avx2: products; elements are inherited.
#include "../../kernel_table.h"

namespace octavo::avx2 {

void fill_gemm(GemmTable& table);
void fill_depthwise(GemmTable& table);

void fill(KernelTable& table) {
  fill_gemm(table.gemm);
  fill_depthwise(table.gemm);
}

}  // namespace octavo::avx2

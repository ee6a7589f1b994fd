// All micro-kernels of the row neon_dotprod: products; what is not filled here is scalar's.
#include "../../kernel_table.h"

namespace octavo::neon_dotprod {

void fill_gemm(GemmTable& table);
void fill_depthwise(GemmTable& table);

void fill(KernelTable& table) {
  fill_gemm(table.gemm);
  fill_depthwise(table.gemm);
}

}  // namespace octavo::neon_dotprod

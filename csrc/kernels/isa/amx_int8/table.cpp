// All micro-kernels of the row amx_int8: dense products by tiles; the rest is avx512_vnni's (its
// depthwise order is shared by the AMX panel). Compiled a second time as amx_emulated for the
// tests.
#include "../../kernel_table.h"
#include "tile.h"

namespace octavo::OCTAVO_AMX {

void fill_gemm(GemmTable& table);
void fill_lowbit(LowbitTable& table);

void fill(KernelTable& table) {
  table.narrow = table.gemm;  // avx512_vnni's
  fill_gemm(table.gemm);
  fill_lowbit(table.lowbit);
}

}  // namespace octavo::OCTAVO_AMX

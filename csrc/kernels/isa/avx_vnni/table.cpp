// All micro-kernels of the row avx_vnni: products by VEX dot-product instructions; the rest is
// avx2's.
#include "../../kernel_table.h"

namespace octavo::avx_vnni {

void fill(KernelTable&) {}

}  // namespace octavo::avx_vnni

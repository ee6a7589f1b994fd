// All micro-kernels of the row avx2.
#include "../../kernel_table.h"

namespace octavo::avx2 {

void fill(KernelTable&) {}

}  // namespace octavo::avx2

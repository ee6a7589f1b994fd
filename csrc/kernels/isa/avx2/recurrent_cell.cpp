// Time steps of recurrent networks for the row avx2. Called by kernels/recurrent.cpp through the
// table.
#define OCTAVO_VECTOR_BYTES 32
#include "../recurrent_cell.h"

namespace octavo::avx2 {

void fill_recurrent_cell(ElementTable& table) { table.recurrent_cell_f32 = recurrent_cell_f32; }

}  // namespace octavo::avx2

// Time steps of recurrent networks for the row avx512_vnni. Called by kernels/recurrent.cpp through
// the table.
#define OCTAVO_VECTOR_BYTES 64
#include "../recurrent_cell.h"

namespace octavo::avx512_vnni {

void fill_recurrent_cell(ElementTable& table) { table.recurrent_cell_f32 = recurrent_cell_f32; }

}  // namespace octavo::avx512_vnni

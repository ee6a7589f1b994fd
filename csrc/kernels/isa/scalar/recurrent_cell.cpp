// Time steps of recurrent networks for the row scalar. Called by kernels/recurrent.cpp through the
// table.
#define OCTAVO_VECTOR_BYTES 16
#include "../recurrent_cell.h"

namespace octavo::scalar {

void fill_recurrent_cell(ElementTable& table) { table.recurrent_cell_f32 = recurrent_cell_f32; }

}  // namespace octavo::scalar

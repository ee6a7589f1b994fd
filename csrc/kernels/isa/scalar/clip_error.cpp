// Errors of rounded weights for the row scalar. Called by kernels/clip_error.cpp through the table.
#define OCTAVO_VECTOR_BYTES 16
#include "../clip_error.h"

namespace octavo::scalar {

void fill_clip_error(ElementTable& table) { table.clip_error_f32 = clip_error_f32; }

}  // namespace octavo::scalar

// Errors of rounded weights for the row avx512_vnni. Called by kernels/clip_error.cpp through the
// table.
#define OCTAVO_VECTOR_BYTES 64
#include "../clip_error.h"

namespace octavo::avx512_vnni {

void fill_clip_error(ElementTable& table) { table.clip_error_f32 = clip_error_f32; }

}  // namespace octavo::avx512_vnni

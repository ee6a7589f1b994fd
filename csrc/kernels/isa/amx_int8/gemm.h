// Dense products for lowbit.cpp: rows of activations times a panel of unpacked levels whose rows
// have one scale. Defined by gemm.cpp.
#pragma once

#include "../../kernel_table.h"
#include "tile.h"

namespace octavo::OCTAVO_AMX {

/// gemm_u8s8_rows with more than two rows and levels [depth / 4][width][4], depth being a positive
/// multiple of 64, for
///
///   y = fmaf(fmaf(float(sum - row_zero[x] * colsum[c]), scale[c], 0), row_scale[x], offset[c])
void gemm_level_rows(const GemmJob& job);

}  // namespace octavo::OCTAVO_AMX

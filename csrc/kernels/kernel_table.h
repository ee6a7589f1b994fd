// All micro-kernels of one ISA. A table starts as a copy of its parent's and the ISA's fill
// function overrides the entries that it does better, so nothing here is ever null.
#pragma once

#include "element_table.h"
#include "fake_quantize_table.h"
#include "gemm_table.h"
#include "lowbit_table.h"

namespace octavo {

struct KernelTable {
  GemmTable gemm;          // gemm_table.h: dense tiles, depthwise tiles, panel layout
  GemmTable narrow;        // the same for groups of few channels (panel.h, layout_of)
  ElementTable element;    // element_table.h: quantize, min-max, elementwise, pooling
  LowbitTable lowbit;      // lowbit_table.h: packed 2..4-bit weights, group scales, look-ups
  FakeQuantizeTable fake;  // fake_quantize_table.h: fake quantization and its gradients
};

// One per folder under isa/, defined in its table.cpp.
namespace scalar {
void fill(KernelTable& table);
}
namespace avx2 {
void fill(KernelTable& table);
}
namespace avx_vnni {
void fill(KernelTable& table);
}
namespace avx512_vnni {
void fill(KernelTable& table);
}
namespace amx_int8 {
void fill(KernelTable& table);
}
namespace neon_dotprod {
void fill(KernelTable& table);
}

}  // namespace octavo

// All micro-kernels of the row scalar: the readable specification and the last resort; every entry
// is filled.
#include "../../kernel_table.h"

namespace octavo::scalar {

void fill_gemm(GemmTable& table);
void fill_depthwise(GemmTable& table);
void fill_quantize(ElementTable& table);
void fill_minmax(ElementTable& table);
void fill_clip_error(ElementTable& table);
void fill_recurrent_cell(ElementTable& table);
void fill_elementwise(ElementTable& table);
void fill_pool(ElementTable& table);
void fill_fake_quantize(FakeQuantizeTable& table);
void fill_layout(ElementTable& table);
void fill_lowbit(LowbitTable& table);

void fill(KernelTable& table) {
  fill_gemm(table.gemm);
  fill_depthwise(table.gemm);
  fill_quantize(table.element);
  fill_minmax(table.element);
  fill_clip_error(table.element);
  fill_recurrent_cell(table.element);
  fill_elementwise(table.element);
  fill_pool(table.element);
  fill_fake_quantize(table.fake);
  fill_layout(table.element);
  fill_lowbit(table.lowbit);
}

}  // namespace octavo::scalar

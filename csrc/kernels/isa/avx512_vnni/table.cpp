// All micro-kernels of the row avx512_vnni.
#include "../../kernel_table.h"

namespace octavo::avx512_vnni {

void fill_gemm(GemmTable& table);
void fill_depthwise(GemmTable& table);
void fill_quantize(ElementTable& table);
void fill_minmax(ElementTable& table);
void fill_clip_error(ElementTable& table);
void fill_recurrent_cell(ElementTable& table);
void fill_elementwise(ElementTable& table);
void fill_elementwise_vbmi(ElementTable& table);
void fill_pool(ElementTable& table);
void fill_lowbit(LowbitTable& table);
void fill_lowbit_float(LowbitTable& table);
void fill_lowbit_vbmi(LowbitTable& table);
void fill_fake_quantize(FakeQuantizeTable& table);

void fill(KernelTable& table) {
  fill_gemm(table.gemm);
  fill_depthwise(table.gemm);
  fill_quantize(table.element);
  fill_minmax(table.element);
  fill_clip_error(table.element);
  fill_recurrent_cell(table.element);
  fill_elementwise(table.element);
  fill_lowbit(table.lowbit);
  fill_lowbit_float(table.lowbit);
  // Not every CPU of this row has byte permutes. They use no registers beyond the row's own, so the
  // operating system has been asked already.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vbmi")) {
    fill_elementwise_vbmi(table.element);
    fill_lowbit_vbmi(table.lowbit);
  }
  fill_pool(table.element);
  fill_fake_quantize(table.fake);
}

}  // namespace octavo::avx512_vnni

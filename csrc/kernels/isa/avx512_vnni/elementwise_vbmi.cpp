// Table look-up by byte permutes, for CPUs that have AVX512-VBMI beside the row's own features:
// table.cpp asks. This file alone is compiled with -mavx512vbmi. isa/scalar/elementwise.cpp says
// what every result is.
#include <immintrin.h>

#include "../../kernel_table.h"

namespace octavo::avx512_vnni {
namespace {

// Two permutes look up 128 entries each by the low seven bits; bit 7 chooses between them.
void table_u8_u8(const uint8_t* x, int64_t count, const uint8_t* table, uint8_t* out) {
  const __m512i t0 = _mm512_loadu_si512(table), t1 = _mm512_loadu_si512(table + 64);
  const __m512i t2 = _mm512_loadu_si512(table + 128), t3 = _mm512_loadu_si512(table + 192);
  auto look_up = [&](__m512i v) {
    const __m512i low = _mm512_permutex2var_epi8(t0, v, t1);
    const __m512i high = _mm512_permutex2var_epi8(t2, v, t3);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), low, high);
  };
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    _mm512_storeu_si512(out + i, look_up(_mm512_loadu_si512(x + i)));
  }
  if (i < count) {
    const __mmask64 mask = (__mmask64{1} << (count - i)) - 1;
    _mm512_mask_storeu_epi8(out + i, mask, look_up(_mm512_maskz_loadu_epi8(mask, x + i)));
  }
}

}  // namespace

void fill_elementwise_vbmi(ElementTable& t) { t.table_u8_u8 = table_u8_u8; }

}  // namespace octavo::avx512_vnni

// Few rows times packed codes of a level table by byte permutes, for CPUs that have AVX512-VBMI
// beside the row's own features: table.cpp asks. This file is compiled with -mavx512vbmi.
#include "../../kernel_table.h"
#include "packed_product.h"

namespace octavo::avx512_vnni {
namespace {

/// Sixty-four entries: entry i is levels[(i >> shift) & mask] + 128.
OCTAVO_INLINE __m512i wide_table(const int8_t* levels, int shift, int mask) {
  uint8_t table[64];
  for (int i = 0; i < 64; ++i) table[i] = static_cast<uint8_t>(levels[i >> shift & mask] + 128);
  return load(table);
}

/// Levels by byte permutes, which take the low six bits of an index and ignore the others: tables
/// that repeat take a code out of its neighbours without masks.
template <int kBits, int kParts>
struct Permuted {
  static constexpr int kStored = kBits, kClasses = kParts;
  static constexpr int kMost = kBits == 3 ? 4 : 6, kMostWide = kBits == 3 ? 2 : 4;
  static constexpr int kShift[kParts] = {};
  static constexpr int kMask = (1 << kBits) - 1;
  static constexpr int klass(int quad) { return quad % kParts; }
  OCTAVO_INLINE explicit Permuted(const LowbitPanel& p)
      : first(wide_table(p.levels, 0, kMask)),
        second(kBits == 4 ? first : wide_table(p.levels, kBits, kMask)),
        third(kBits == 2 ? wide_table(p.levels, 4, kMask) : first) {}
  template <int Q>
  OCTAVO_INLINE __m512i quad(const __m512i* p) const {
    if constexpr (kBits == 4) {
      return _mm512_permutexvar_epi8(Q == 0 ? p[0] : _mm512_srli_epi16(p[0], 4), first);
    } else if constexpr (kBits == 2) {
      if constexpr (Q == 3) return _mm512_permutexvar_epi8(_mm512_srli_epi16(p[0], 2), third);
      return _mm512_permutexvar_epi8(p[0], Q == 0 ? first : Q == 1 ? second : third);
    } else if constexpr (Q < 6) {
      return _mm512_permutexvar_epi8(p[Q / 2], Q % 2 == 0 ? first : second);
    } else {
      const __m512i low = _mm512_srli_epi16(p[2], Q - 5);
      const __m512i index = _mm512_srli_epi16(select(bytes(0xc0), p[Q - 6], low), 2);
      return _mm512_permutexvar_epi8(index, second);
    }
  }
  __m512i first, second, third;
};

template <int kStored>
void multiply_levels(const PackedJob& job) {
  packed_panel<Permuted<kStored, 2>, Permuted<kStored, 1>>(job);
}

void multiply_packed_levels(const PackedJob& job) {
  if (job.panel.stored == 4) multiply_levels<4>(job);
  if (job.panel.stored == 3) multiply_levels<3>(job);
  if (job.panel.stored == 2) multiply_levels<2>(job);
}

}  // namespace

void fill_lowbit_vbmi(LowbitTable& table) { table.multiply_packed_levels = multiply_packed_levels; }

}  // namespace octavo::avx512_vnni

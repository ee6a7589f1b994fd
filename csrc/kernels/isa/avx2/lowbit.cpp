// Products with packed low-bit weights on AVX2 without dot-product instructions. Filled into the
// row by table.cpp; called by kernels/lowbit.cpp. Codes of linear grids are below 16, so vpmaddubsw
// multiplies them directly: no pair saturates, and the pairs of a whole unit add up in 16 bits.
// Levels of a table may be any int8, so they are looked up in halves of four bits. Look-ups in rows
// serve every instruction set above this one.
#include "widening_dot.h"
#include "ymm_lowbit.h"

namespace octavo::avx2 {
namespace {

/// level + 128 = 16 high + low.
struct Halves {
  __m256i low, high;
};

/// Levels of a table in halves. The tables stay in memory: sums need the registers.
template <int kBits>
struct SplitLevels {
  static constexpr int kStored = kBits, kOperands = 2, kMost = kBits == 3 ? 3 : 4;
  OCTAVO_INLINE explicit SplitLevels(const LowbitPanel& p)
      : even(halves_of(table_of<kBits, 0x80, 0>(p))),
        odd(kBits == 2 ? halves_of(table_of<kBits, 0x80, 1>(p)) : even) {}
  static OCTAVO_INLINE Halves halves_of(__m256i levels) {
    return {_mm256_and_si256(levels, bytes(0x0f)),
            _mm256_and_si256(_mm256_srli_epi16(levels, 4), bytes(0x0f))};
  }
  template <int Q>
  OCTAVO_INLINE Halves quad(const __m256i* p) const {
    const Halves& table = kBits == 2 && Q % 2 == 1 ? odd : even;
    const __m256i index = index_quad<kBits, Q>(p);
    return {look_up(table.low, index), look_up(table.high, index)};
  }
  static OCTAVO_INLINE __m256i look_up(const __m256i& table, __m256i index) {
    __m256i value;
    __asm__ volatile(
        "vmovdqa %2, %0\n\t"
        "vpshufb %1, %0, %0"
        : "=&x"(value)
        : "x"(index), "m"(table));
    return value;
  }
  Halves even, odd;
};

alignas(32) constexpr int64_t kOneWords[4] = {0x0001000100010001, 0x0001000100010001,
                                              0x0001000100010001, 0x0001000100010001};
alignas(32) constexpr int64_t kSixteenWords[4] = {0x0010001000100010, 0x0010001000100010,
                                                  0x0010001000100010, 0x0010001000100010};

/// Sums of a unit's pairs in 16 bits. The largest: 7,680 (4 bits), 14,336 (3 bits), 3,072 (2 bits),
/// 30,720 (halves of levels of 3 bits). Assembly keeps the order of the code, in which all sums fit
/// registers; in GCC's own order they do not.
struct PairSums {
  template <bool kFirst>
  OCTAVO_INLINE void add(__m256i u, __m256i s) {
    if constexpr (kFirst) {
      __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(sum) : "x"(u), "x"(s));
    } else {
      __m256i pairs;
      __asm__ volatile(
          "vpmaddubsw %3, %2, %1\n\t"
          "vpaddw %1, %0, %0"
          : "+x"(sum), "=&x"(pairs)
          : "x"(u), "x"(s));
    }
  }
  /// to += factor * the sums.
  OCTAVO_INLINE void add_to(__m256i& to, const int64_t (&factor)[4]) {
    __asm__ volatile(
        "vpmaddwd %2, %1, %1\n\t"
        "vpaddd %1, %0, %0"
        : "+x"(to), "+x"(sum)
        : "m"(factor));
  }
  __m256i sum;
};

struct LowbitDot : WideningDot {
  template <class Codec>
  static constexpr int kCodeSums = Codec::kOperands == 1 && Codec::kStored != 3 ? 8 : 4;
  template <int kOperands>
  struct Products;
};
template <>
struct LowbitDot::Products<1> : PairSums {
  OCTAVO_INLINE void begin(__m256i) {}
  OCTAVO_INLINE void end(__m256i& to) { add_to(to, kOneWords); }
};
template <>
struct LowbitDot::Products<2> {
  OCTAVO_INLINE void begin(__m256i) {}
  template <bool kFirst>
  OCTAVO_INLINE void add(const Halves& u, __m256i s) {
    low.add<kFirst>(u.low, s);
    high.add<kFirst>(u.high, s);
  }
  OCTAVO_INLINE void end(__m256i& to) {
    low.add_to(to, kOneWords);
    high.add_to(to, kSixteenWords);
  }
  PairSums low, high;
};

/// Eight codes at a time: they take job.bits bytes, each code lies in the four bytes from its first
/// on, and reads beyond the end of a row fall into the scales behind the codes.
void dequantize_row(const RowJob& job) {
  alignas(32) float table[256];
  if (job.kind == LowbitKind::kLevels) {
    for (int i = 0; i < 1 << job.bits; ++i) table[i] = static_cast<float>(job.levels[i]);
  }
  alignas(32) int32_t offset[8], shift[8];
  for (int i = 0; i < 8; ++i) {
    offset[i] = i * job.bits / 8;
    shift[i] = i * job.bits % 8;
  }
  const __m256i offsets = load(offset), shifts = load(shift);
  const int32_t largest = (1 << job.bits) - 1;
  const __m256i mask = _mm256_set1_epi32(largest);
  for (int64_t first = 0; first < job.count; first += job.group) {
    const int64_t g = first / job.group, left = job.count - first;
    const int64_t count = left < job.group ? left : job.group;
    int32_t zero = 1 << (job.bits - 1);
    if (job.kind == LowbitKind::kAffine) zero = job.zero[g];
    float scale;
    if (job.wide_scale != nullptr) {
      scale = *job.wide_scale;
    } else {
      const uint32_t bits = uint32_t{job.scale[g]} << 16;
      __builtin_memcpy(&scale, &bits, 4);
    }
    const uint8_t* codes = job.codes + first * job.bits / 8;  // groups begin at bytes
    float* y = job.y + first;
    for (int64_t i = 0; i < count; i += 8, codes += job.bits) {
      const int64_t columns = count - i;
      __m256i word;
      if (columns >= 8) {
        word = _mm256_i32gather_epi32(reinterpret_cast<const int*>(codes), offsets, 1);
      } else {
        uint8_t some[16] = {};
        __builtin_memcpy(some, codes, static_cast<size_t>((columns * job.bits + 7) / 8));
        word = _mm256_i32gather_epi32(reinterpret_cast<const int*>(some), offsets, 1);
      }
      const __m256i code = _mm256_and_si256(_mm256_srlv_epi32(word, shifts), mask);
      const __m256 level =
          job.kind == LowbitKind::kLevels
              ? _mm256_i32gather_ps(table, code, 4)
              : _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(zero)));
      store_columns(y + i, _mm256_mul_ps(level, _mm256_set1_ps(scale)), columns);
    }
  }
}

}  // namespace

void fill_lowbit(LowbitTable& table) {
  table.tile_rows = 1;
  table.packed_rows = INT64_MAX;
  table.packed_rows_levels = INT64_MAX;
  table.multiply_packed = multiply_packed<LowbitDot, Linear>;
  table.multiply_packed_levels = multiply_packed<LowbitDot, SplitLevels>;
  table.unpack_levels = unpack_levels;
  table.gemm_u8s8_groups = gemm_u8s8_groups<LowbitDot>;
  table.gemm_f32s8_groups = gemm_f32s8_groups;
  table.flip_u8_s8 = flip_u8_s8;
  table.dequantize_row = dequantize_row;
}

}  // namespace octavo::avx2

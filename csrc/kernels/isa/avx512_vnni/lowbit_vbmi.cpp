// Rows times packed codes of a level table, and look-ups in packed rows, by byte permutes: for CPUs
// that have AVX512-VBMI beside the row's own features; table.cpp asks. This file is compiled with
// -mavx512vbmi.
#include "../../kernel_table.h"
#include "packed_product.h"

namespace octavo::avx512_vnni {
namespace {

/// Levels by byte permutes, which use the low six bits of an index and ignore the others. Tables
/// repeat, so that the bits of neighbouring codes in an index need no mask.
template <int kBits, int kParts>
struct Permuted {
  static constexpr int kStored = kBits, kClasses = kParts;
  static constexpr int kMost = kBits == 3 ? 4 : 6, kMostWide = kBits == 3 ? 2 : 4, kWidth = 64;
  static constexpr int kShift[kParts] = {};
  static constexpr int klass(int quad) { return quad % kParts; }
  OCTAVO_INLINE explicit Permuted(const LowbitPanel& p)
      : first(table_of<kBits, 0>(p.levels, 0x80)),
        second(kBits == 4 ? first : table_of<kBits, kBits>(p.levels, 0x80)),
        third(kBits == 2 ? table_of<kBits, 4>(p.levels, 0x80) : first) {}
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

// ---- look-ups

/// How sixty-four codes of kBits are taken from their 8 * kBits bytes: qword j gets the bytes from
/// j * kBits on, and its byte i the bits from i * kBits on.
template <int kBits>
struct Spread {
  constexpr Spread() {
    for (int i = 0; i < 64; ++i) {
      from[i] = static_cast<uint8_t>(i / 8 * kBits + i % 8);
      shift[i] = static_cast<uint8_t>(i % 8 * kBits);
    }
  }
  alignas(64) uint8_t from[64] = {}, shift[64] = {};
};

OCTAVO_INLINE __mmask64 first_bytes(int64_t count) {
  return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1;
}

/// A table of 2^kBits levels.
template <int kBits>
struct LevelTable {
  explicit LevelTable(const int8_t* levels) {
    for (int i = 0; i < kParts; ++i) {
      part[i] = _mm512_maskz_loadu_epi8(first_bytes(1 << kBits), levels + 64 * i);
    }
  }
  /// Levels of the low kBits of every byte.
  OCTAVO_INLINE __m512i at(__m512i code) const {
    if constexpr (kBits <= 6) return _mm512_permutexvar_epi8(code, part[0]);
    const __m512i low = _mm512_permutex2var_epi8(part[0], code, part[kParts > 1 ? 1 : 0]);
    if constexpr (kBits == 7) return low;
    const __m512i high =
        _mm512_permutex2var_epi8(part[kParts - 2 < 0 ? 0 : kParts - 2], code, part[kParts - 1]);
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(code), high);
  }
  static constexpr int kParts = kBits <= 6 ? 1 : 1 << (kBits - 6);
  __m512i part[kParts];
};

/// y of sixteen inputs from 16 kPart on: (level - zero) * scale.
template <int kPart>
OCTAVO_INLINE void store_part(float* y, int64_t count, __m512i levels, int32_t zero, float scale) {
  const __m512i level = _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(levels, kPart));
  const __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(level, _mm512_set1_epi32(zero)));
  _mm512_mask_storeu_ps(y + 16 * kPart, lanes(count - 16 * kPart),
                        _mm512_mul_ps(value, _mm512_set1_ps(scale)));
}

/// Scale and zero point of the group that holds the inputs asked for, in steps of sixteen.
struct GroupWalk {
  explicit GroupWalk(const RowJob& row) : job(row) {}
  OCTAVO_INLINE void next_sixteen() {
    if (left <= 0) {
      left = job.group;
      scale = job.wide_scale != nullptr
                  ? *job.wide_scale
                  : _mm_cvtss_f32(_mm_castsi128_ps(
                        _mm_cvtsi32_si128(static_cast<int32_t>(uint32_t{job.scale[group]} << 16))));
      if (job.kind == LowbitKind::kAffine) zero = job.zero[group];
      ++group;
    }
    left -= 16;
  }
  const RowJob& job;
  int64_t group = 0, left = 0;
  float scale = 0.0f;
  int32_t zero = 0;
};

template <int kPart>
OCTAVO_INLINE void store_parts(float* y, int64_t count, __m512i levels, GroupWalk& walk) {
  if constexpr (kPart < 4) {
    if (count <= 16 * kPart) return;
    walk.next_sixteen();
    store_part<kPart>(y, count, levels, walk.zero, walk.scale);
    store_parts<kPart + 1>(y, count, levels, walk);
  }
}

template <int kBits>
void dequantize_bits(const RowJob& job) {
  static constexpr Spread<kBits> spread;
  const __m512i from = load(spread.from), shift = load(spread.shift);
  const bool table = job.kind == LowbitKind::kLevels;
  // Zero points of groups are subtracted from widened codes; of 8 bits there are none.
  const __m512i middle = bytes(job.kind == LowbitKind::kSymmetric ? 1 << (kBits - 1) : 0);
  static constexpr int8_t none[1 << kBits] = {};
  const LevelTable<kBits> levels(table ? job.levels : none);
  GroupWalk walk(job);
  const uint8_t* packed = job.codes;
  for (int64_t i = 0; i < job.count; i += 64, packed += 8 * kBits) {
    const int64_t count = job.count - i < 64 ? job.count - i : 64;
    const __m512i some = _mm512_maskz_loadu_epi8(first_bytes((count * kBits + 7) / 8), packed);
    const __m512i wide = _mm512_multishift_epi64_epi8(shift, _mm512_permutexvar_epi8(from, some));
    const __m512i code = _mm512_and_si512(wide, bytes((1 << kBits) - 1));
    store_parts<0>(job.y + i, count, table ? levels.at(code) : _mm512_sub_epi8(code, middle), walk);
  }
}

void dequantize_row(const RowJob& job) {
  if (job.bits == 2) dequantize_bits<2>(job);
  if (job.bits == 3) dequantize_bits<3>(job);
  if (job.bits == 4) dequantize_bits<4>(job);
  if (job.bits == 5) dequantize_bits<5>(job);
  if (job.bits == 6) dequantize_bits<6>(job);
  if (job.bits == 7) dequantize_bits<7>(job);
  if (job.bits == 8) dequantize_bits<8>(job);
}

}  // namespace

void fill_lowbit_vbmi(LowbitTable& table) {
  table.multiply_packed_levels = multiply_packed_levels;
  table.packed_rows_levels = INT64_MAX;
  table.dequantize_row = dequantize_row;
}

}  // namespace octavo::avx512_vnni

// Few rows times a panel of packed codes: a tile template over the way in which codes become
// operands of vpdpbusd. Included by lowbit.cpp (masks, shifts, byte shuffles) and lowbit_vbmi.cpp
// (byte permutes); everything has internal linkage.
#pragma once

#include <immintrin.h>

#include "../../lowbit_table.h"
#include "../cut_rows.h"

namespace octavo::avx512_vnni {
namespace {

#define OCTAVO_INLINE inline __attribute__((always_inline))

/// sum += u . s over the four bytes of every dword. Inline assembly for the reason given in
/// gemm.cpp.
OCTAVO_INLINE void dot(__m512i& sum, __m512i u8, __m512i s8) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u8), "v"(s8));
}
/// sum += a . b over the two words of every dword, b being one dword.
OCTAVO_INLINE void dot_words(__m512i& sum, __m512i a, const int32_t& b) {
  __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(b));
}

OCTAVO_INLINE __m512i load(const void* p) { return _mm512_loadu_si512(p); }
OCTAVO_INLINE __m512i bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
OCTAVO_INLINE __m512i broadcast4(const void* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, 4);
  return _mm512_set1_epi32(quad);
}
OCTAVO_INLINE __mmask16 lanes(int64_t columns) {
  return columns >= 16 ? 0xffff : columns <= 0 ? 0 : static_cast<__mmask16>((1u << columns) - 1);
}

/// Bits of `a` where the mask has ones, else bits of `b`.
OCTAVO_INLINE __m512i select(__m512i mask, __m512i a, __m512i b) {
  return _mm512_ternarylogic_epi32(mask, a, b, 0xca);
}

constexpr int planes_of(int stored) { return stored == 3 ? 3 : 1; }
constexpr int quads_of(int stored) { return stored == 3 ? 8 : 8 / stored; }

// Codecs follow: quad<Q>(p) is the unsigned operand of quad Q from the planes p of a unit; kMost is
// the most rows whose sums fit registers in tiles of 32 columns, kMostWide in tiles of 64. Quads of
// class c come out multiplied by 2^shift[c]; their sums are kept apart and shifted once a group.
// kWidth is that of packed_tile in tiles of 64 columns.

/// Linear codes, not shifted: one AND for each quad.
template <int kStored>
struct Masked;

template <>
struct Masked<4> {
  static constexpr int kStored = 4, kClasses = 2, kMostWide = 1, kWidth = 64;
  static constexpr int kShift[2] = {0, 4};
  static constexpr int klass(int quad) { return quad; }
  OCTAVO_INLINE explicit Masked(const LowbitPanel&) {}
  template <int Q>
  OCTAVO_INLINE __m512i quad(const __m512i* p) const {
    return _mm512_and_si512(p[0], bytes(0x0f << (4 * Q)));
  }
};
template <>
struct Masked<2> {
  static constexpr int kStored = 2, kClasses = 4, kMostWide = 1, kWidth = 64;
  static constexpr int kShift[4] = {0, 2, 4, 6};
  static constexpr int klass(int quad) { return quad; }
  OCTAVO_INLINE explicit Masked(const LowbitPanel&) {}
  template <int Q>
  OCTAVO_INLINE __m512i quad(const __m512i* p) const {
    return _mm512_and_si512(p[0], bytes(0x03 << (2 * Q)));
  }
};
template <>
struct Masked<3> {
  // With the width known GCC 12 spills a plane.
  static constexpr int kStored = 3, kClasses = 3, kMostWide = 1, kWidth = 0;
  static constexpr int kShift[3] = {0, 3, 5};
  static constexpr int klass(int quad) { return quad >= 6 ? 2 : quad % 2; }
  OCTAVO_INLINE explicit Masked(const LowbitPanel&) {}
  template <int Q>
  OCTAVO_INLINE __m512i quad(const __m512i* p) const {
    if constexpr (Q < 6) {
      return _mm512_and_si512(p[Q / 2], bytes(0x07 << (3 * (Q % 2))));
    } else {
      // Upper bits at 6..7 of plane A or B, the lowest at bit Q of plane C: together bits 5..7.
      const __m512i low = _mm512_srli_epi16(p[2], Q - 5);
      return _mm512_and_si512(select(bytes(0xc0), p[Q - 6], low), bytes(0xe0));
    }
  }
};

/// Linear codes shifted to their place: one class.
template <int kBits>
struct Shifted {
  static constexpr int kStored = kBits, kClasses = 1, kMost = 6;
  static constexpr int kMostWide = kBits == 3 ? 2 : 4, kWidth = 64;
  static constexpr int kShift[1] = {0};
  static constexpr int klass(int) { return 0; }
  OCTAVO_INLINE explicit Shifted(const LowbitPanel&) {}
  template <int Q>
  OCTAVO_INLINE __m512i quad(const __m512i* p) const {
    const __m512i mask = bytes((1 << kBits) - 1);
    if constexpr (kBits != 3) {
      return _mm512_and_si512(Q == 0 ? p[0] : _mm512_srli_epi16(p[0], Q * kBits), mask);
    } else if constexpr (Q < 6) {
      return _mm512_and_si512(Q % 2 == 0 ? p[Q / 2] : _mm512_srli_epi16(p[Q / 2], 3), mask);
    } else {
      const __m512i low = _mm512_srli_epi16(p[2], Q - 5);
      return _mm512_and_si512(_mm512_srli_epi16(select(bytes(0xc0), p[Q - 6], low), 5), mask);
    }
  }
};

/// Places of a level table that repeats: entry i is (i >> shift) & mask.
struct Places {
  constexpr Places(int shift, int mask) {
    for (int i = 0; i < 64; ++i) entry[i] = static_cast<uint8_t>(i >> shift & mask);
  }
  alignas(64) uint8_t entry[64] = {};
};

/// Sixty-four entries; if kShift + kBits <= 4, sixteen of them repeated in every lane. Entry i is
/// levels[(i >> kShift) & mask], XORed with `flip`. Made by a shuffle: a load of bytes that were
/// stored one by one would wait for the stores, at the beginning of every panel.
template <int kBits, int kShift>
OCTAVO_INLINE __m512i table_of(const int8_t* levels, int flip) {
  static constexpr Places places(kShift, (1 << kBits) - 1);
  __m128i lane = _mm_setzero_si128();
  __builtin_memcpy(&lane, levels, size_t{1} << kBits);
  const __m512i lanes = _mm512_broadcast_i32x4(lane);
  return _mm512_xor_si512(_mm512_shuffle_epi8(lanes, load(places.entry)), bytes(flip));
}

/// Levels by byte shuffles, which use the low four bits of an index whose bit 7 is clear. kFlip:
/// 0x80 makes levels unsigned (level + 128), 0 leaves them. kParts: separate sums, so that the four
/// vectors of one row form more chains of additions than four.
template <int kBits, int kFlip, int kParts>
struct Shuffled {
  static constexpr int kStored = kBits, kClasses = kParts;
  static constexpr int kMost = kBits == 2 ? 3 : 4, kMostWide = 1, kWidth = 64;
  static constexpr int kShift[kParts] = {};
  static constexpr int klass(int quad) { return quad % kParts; }
  OCTAVO_INLINE explicit Shuffled(const LowbitPanel& p)
      : low(table_of<kBits, 0>(p.levels, kFlip)),
        high(kBits == 2 ? table_of<kBits, 2>(p.levels, kFlip) : low) {}
  template <int Q>
  OCTAVO_INLINE __m512i quad(const __m512i* p) const {
    const __m512i mask = bytes(0x0f);
    if constexpr (kBits == 2) {
      const __m512i two = _mm512_and_si512(Q < 2 ? p[0] : _mm512_srli_epi16(p[0], 4), mask);
      return _mm512_shuffle_epi8(Q % 2 == 0 ? low : high, two);
    } else if constexpr (kBits == 4) {
      return _mm512_shuffle_epi8(
          low, _mm512_and_si512(Q == 0 ? p[0] : _mm512_srli_epi16(p[0], 4), mask));
    } else if constexpr (Q < 6) {
      return _mm512_shuffle_epi8(
          low, _mm512_and_si512(Q % 2 == 0 ? p[Q / 2] : _mm512_srli_epi16(p[Q / 2], 3), mask));
    } else {
      const __m512i part = _mm512_srli_epi16(p[2], Q - 5);
      const __m512i index = _mm512_srli_epi16(select(bytes(0xc0), p[Q - 6], part), 5);
      return _mm512_shuffle_epi8(low, _mm512_and_si512(index, bytes(0x07)));
    }
  }
  __m512i low, high;
};

/// Loads the vectors of plane `i` of a unit. kOnce: by assembly, because GCC repeats the load in
/// each of the instructions that use the vector, and then the two loads of a cycle limit products
/// of one row: 3 bits took 3 to 5 % longer.
template <bool kOnce, int V>
OCTAVO_INLINE void load_plane(__m512i (&p)[V][3], int i, const uint8_t* codes, int64_t step) {
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const uint8_t* at = codes + i * step + 64 * v;
    if constexpr (kOnce) {
      __asm__("vmovdqu32 %1, %0" : "=v"(p[v][i]) : "m"(*reinterpret_cast<const __m512i*>(at)));
    } else {
      p[v][i] = load(at);
    }
  }
}

/// Prefetch distances: LowbitPanel's.
struct Ahead {
  int64_t l1, l2;
};

/// Prefetches what follows V lines.
template <int V>
OCTAVO_INLINE void ask(const void* lines, const Ahead& ahead) {
  const auto* from = static_cast<const char*>(lines);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) _mm_prefetch(from + 64 * v + ahead.l1, _MM_HINT_T0);
  if (ahead.l2 == 0) return;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) _mm_prefetch(from + 64 * v + ahead.l2, _MM_HINT_T1);
}

/// The quad that is taken as number `i`: of three planes, the quads of A and C first, so that only
/// two planes are in registers at a time.
constexpr int quad_at(int stored, int i) {
  constexpr int kOrder[8] = {0, 1, 6, 2, 3, 7, 4, 5};
  return stored == 3 ? kOrder[i] : i;
}

/// Products of the unit at `codes` from its quad number I on.
template <int I, class Codec, int M, int V>
OCTAVO_INLINE void multiply_unit(__m512i (&sum)[M][Codec::kClasses][V], const Codec& codec,
                                 __m512i (&p)[V][3], const uint8_t* codes, int64_t step,
                                 const Ahead& ahead, const int8_t* const (&a)[M]) {
  if constexpr (I < quads_of(Codec::kStored)) {
    constexpr int Q = quad_at(Codec::kStored, I);
    // Lines are prefetched in the order of memory, not in that of the planes. Time of 3-bit weights
    // from memory: 5 % less; of level tables 12 % less.
    if constexpr (I % 2 == 0 && I / 2 < planes_of(Codec::kStored)) {
      ask<V>(codes + I / 2 * step, ahead);
    }
    if constexpr (I == 0 && Codec::kStored == 3) load_plane<M == 1>(p, 2, codes, step);
    if constexpr (I == 0) load_plane<M == 1>(p, 0, codes, step);
    if constexpr (I == 3 && Codec::kStored == 3) load_plane<M == 1>(p, 1, codes, step);
    __m512i u[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) u[v] = codec.template quad<Q>(p[v]);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m512i s = broadcast4(a[m] + 4 * Q);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) dot(sum[m][Codec::klass(Q)][v], u[v], s);
    }
    multiply_unit<I + 1, Codec, M, V>(sum, codec, p, codes, step, ahead, a);
  }
}

/// Products of the unit at `codes`; moves on to the next unit. Not a lambda, which would keep the
/// sums that it captures in memory.
template <class Codec, int M, int V>
OCTAVO_INLINE void take_unit(__m512i (&sum)[M][Codec::kClasses][V], const Codec& codec,
                             const uint8_t*& codes, int64_t step, const Ahead& ahead,
                             const int8_t* (&a)[M]) {
  __m512i p[V][3];
  multiply_unit<0, Codec, M, V>(sum, codec, p, codes, step, ahead, a);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) a[m] += 4 * quads_of(Codec::kStored);
  codes += planes_of(Codec::kStored) * step;
}

/// What the level sums of a group are multiplied by, for M rows: words with a zero above them.
template <int M>
struct Factors {
  /// sign * zero point + offset, in [-255, 128].
  OCTAVO_INLINE Factors(const int32_t* row_zero, int32_t sign, int32_t offset) {
    for (int m = 0; m < M; ++m) word[m] = (sign * row_zero[m] + offset) & 0xffff;
  }
  int32_t word[M];
};

/// Adds to the sums of M rows x 16 columns what the level sums there contribute; returns the
/// scales.
template <int M, int V>
OCTAVO_INLINE __m512 take_words(const uint8_t* words, const LowbitPanel& p, int64_t column,
                                const Factors<M>& factors, __m512i (&sum)[M][V], int v) {
  const __m512i word = load(words + 4 * column);
  if (p.wide) {
    const __m512i sums = load(words + 4 * (p.width + column));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m512i factor = _mm512_set1_epi32(static_cast<int16_t>(factors.word[m]));
      sum[m][v] = _mm512_add_epi32(sum[m][v], _mm512_mullo_epi32(sums, factor));
    }
    return _mm512_castsi512_ps(word);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) dot_words(sum[m][v], word, factors.word[m]);
  return _mm512_castsi512_ps(
      _mm512_and_si512(word, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
}

/// Float sums of M rows x 16 V columns: reads their start, writes their results. In memory, since a
/// group ends rarely, and its integer sums need the registers.
template <int M, int V>
struct StoredSums {
  template <class Job>
  OCTAVO_INLINE StoredSums(const Job& job, int64_t row, int64_t column) {
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) {
        const float* before = job.acc + (row + m) * kLowbitColumns + column + 16 * v;
        _mm512_store_ps(f[m][v], job.first ? _mm512_setzero_ps() : _mm512_load_ps(before));
      }
    }
  }
  OCTAVO_INLINE void add(int m, int v, __m512 sum, __m512 scale) {
    float* at = f[m][v];
    __asm__ volatile("" : "+r"(at));  // without this GCC keeps some in registers
    _mm512_store_ps(at, _mm512_fmadd_ps(sum, scale, _mm512_load_ps(at)));
  }
  /// y = finish(f, bias, row), or back to acc.
  template <class Job, class Finish>
  OCTAVO_INLINE void store(const Job& job, int64_t row, int64_t column, Finish&& finish) const {
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) {
        const int64_t n = column + 16 * v;
        const __m512 total = _mm512_load_ps(f[m][v]);
        if (!job.last) {
          _mm512_store_ps(job.acc + (row + m) * kLowbitColumns + n, total);
          continue;
        }
        const __mmask16 mask = lanes(job.panel.n - n);
        const __m512 bias = _mm512_maskz_loadu_ps(mask, job.bias + n);
        _mm512_mask_storeu_ps(job.y + (row + m) * job.ldy + n, mask, finish(total, bias, row + m));
      }
    }
  }
  alignas(64) float f[M][V][16];
};

/// M rows from `row` times 16 V columns from `column`. kWidth: the panel's columns, or 0 where they
/// are not known at compile time; constant addresses leave GCC registers for sums. kDeep: also
/// prefetches into L2, if the panel says so; products of one row with weights in L2 take 4 to 11 %
/// longer with it.
template <class Codec, int M, int V, int kWidth, bool kDeep>
__attribute__((noinline)) void packed_tile(const PackedJob& job, int64_t row, int64_t column) {
  constexpr int kUnit = 4 * quads_of(Codec::kStored);
  const LowbitPanel& panel = job.panel;
  const Codec codec(panel);
  const bool affine = panel.kind == LowbitKind::kAffine;
  const Factors<M> factors(job.row_zero + row, -1, 128);
  const int64_t step = (kWidth > 0 ? kWidth : panel.width) * 4;
  const Ahead ahead{panel.ahead, kDeep ? panel.ahead_l2 : 0};
  const int8_t* a[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) a[m] = job.a + (row + m) * job.pitch;
  StoredSums<M, V> sums(job, row, column);
  const uint8_t* words = panel.groups;
  for (int64_t g = 0; g < panel.count; ++g, words += panel.group_step) {
    const uint8_t* codes = words + panel.width * panel.word_bytes + column * 4;
    // The loop prefetches what follows codes; this fills the gap that the words leave.
    ask<V>(words + 4 * column, ahead);
    const int64_t length = g + 1 < panel.count ? panel.group_codes : panel.last_codes;
    __m512i sum[M][Codec::kClasses][V];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const int32_t& a_start = job.a_start[(row + m) * job.a_start_pitch + g];
      const __m512i start = affine ? _mm512_setzero_si512() : _mm512_set1_epi32(a_start);
#pragma GCC unroll 4
      for (int c = 0; c < Codec::kClasses; ++c) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[m][c][v] = c == 0 ? start : _mm512_setzero_si512();
      }
    }
    int64_t k = length;
    // Two units of 4 bits at a time take 7 to 15 % less in L2; at 2 and 3 bits as much more.
    if constexpr (M == 1 && Codec::kStored == 4) {
      for (; k >= 2 * kUnit; k -= 2 * kUnit) {
        take_unit<Codec, M, V>(sum, codec, codes, step, ahead, a);
        take_unit<Codec, M, V>(sum, codec, codes, step, ahead, a);
      }
    }
    for (; k > 0; k -= kUnit) take_unit<Codec, M, V>(sum, codec, codes, step, ahead, a);
    __m512i total[M][V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t n = column + 16 * v;
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        total[m][v] = sum[m][0][v];
#pragma GCC unroll 4
        for (int c = 1; c < Codec::kClasses; ++c) {
          total[m][v] =
              _mm512_add_epi32(total[m][v], _mm512_srai_epi32(sum[m][c][v], Codec::kShift[c]));
        }
        if (affine) {
          const auto* at = words + (panel.wide ? 8 : 4) * panel.width + n;
          const __m512i zeros =
              _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
          const __m512i by = _mm512_set1_epi32(job.a_start[(row + m) * job.a_start_pitch + g]);
          total[m][v] = _mm512_add_epi32(total[m][v], _mm512_mullo_epi32(zeros, by));
        }
      }
      const __m512 scale = take_words(words, panel, n, factors, total, v);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) sums.add(m, v, _mm512_cvtepi32_ps(total[m][v]), scale);
    }
  }
  sums.store(job, row, column, [&](__m512 total, __m512 bias, int64_t m) {
    return _mm512_fmadd_ps(total, _mm512_set1_ps(job.row_scale[m]), bias);
  });
}

/// M rows times all columns of the panel.
template <class Codec, int M, bool kDeep>
void packed_rows_of(const PackedJob& job, int64_t row) {
  int64_t column = 0;
  const int64_t width = job.panel.width;
  if constexpr (M <= Codec::kMostWide) {
    if (width == 64) {
      packed_tile<Codec, M, 4, Codec::kWidth, kDeep>(job, row, 0);
      return;
    }
  } else if (width == 64) {
    packed_tile<Codec, M, 2, 64, kDeep>(job, row, 0);
    packed_tile<Codec, M, 2, 64, kDeep>(job, row, 32);
    return;
  }
  for (; column + 32 <= width; column += 32) packed_tile<Codec, M, 2, 0, false>(job, row, column);
  if (column < width) packed_tile<Codec, M, 1, 0, false>(job, row, column);
}
template <class Codec, int M>
void packed_rows(const PackedJob& job, int64_t row) {
  if constexpr (M == 1) {
    if (job.panel.ahead_l2 == 0) return packed_rows_of<Codec, M, false>(job, row);
  }
  packed_rows_of<Codec, M, true>(job, row);
}

/// One is the codec of single rows.
template <class One, class More>
void packed_panel(const PackedJob& job) {
  constexpr int64_t kMost = More::kMost;
  cut_rows(job.rows, kMost, [&](int64_t row, int64_t m) {
    if constexpr (kMost == 6) {
      if (m == 6) packed_rows<More, 6>(job, row);
      if (m == 5) packed_rows<More, 5>(job, row);
    }
    if constexpr (kMost >= 4) {
      if (m == 4) packed_rows<More, 4>(job, row);
    }
    if (m == 3) packed_rows<More, 3>(job, row);
    if (m == 2) packed_rows<More, 2>(job, row);
    if (m == 1) packed_rows<One, 1>(job, row);
  });
}

}  // namespace
}  // namespace octavo::avx512_vnni

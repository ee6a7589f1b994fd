// Products with packed low-bit weights on 256-bit registers, shared by avx2 and avx_vnni: each
// includes this file in its own unit, compiled with its own flags, and supplies the dot products
// (everything here is in an unnamed namespace, so no code crosses).
//
// Dot supplies: B load_b(const int8_t*), A broadcast(const uint8_t*) and add(sum, A, B), exact for
// all codes and levels, as in ymm_gemm.h. For packed codes: Products<kOperands>, the products of
// one unit, 8 columns, with the operands that a codec makes of a quad (begin(sum), add<first quad>(
// operands, s8), end(sum)); and kCodeSums<Codec>, the vectors of sums of tiles of two and four
// rows.
#pragma once

#include <immintrin.h>

#include "../../kernel_table.h"
#include "../cut_rows.h"

namespace octavo {
namespace {

#define OCTAVO_INLINE inline __attribute__((always_inline))

OCTAVO_INLINE __m256i load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
OCTAVO_INLINE __m256i bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }

constexpr int planes_of(int stored) { return stored == 3 ? 3 : 1; }
constexpr int quads_of(int stored) { return stored == 3 ? 8 : 8 / stored; }

/// v AND a mask that stays in memory, since registers hold sums.
OCTAVO_INLINE __m256i masked(__m256i v, const uint64_t (&mask)[4]) {
  __m256i some;
  __asm__("vpand %2, %1, %0" : "=x"(some) : "x"(v), "m"(mask));
  return some;
}
constexpr uint64_t kSixes = 0x0606060606060606, kOnes = 0x0101010101010101;
alignas(32) constexpr uint64_t kUpperBits[4] = {kSixes, kSixes, kSixes, kSixes};
alignas(32) constexpr uint64_t kLowestBit[4] = {kOnes, kOnes, kOnes, kOnes};

/// Codes of quad Q of a unit.
template <int kBits, int Q>
OCTAVO_INLINE __m256i code_quad(const __m256i* p) {
  const __m256i mask = bytes((1 << kBits) - 1);
  if constexpr (kBits != 3) {
    return _mm256_and_si256(Q == 0 ? p[0] : _mm256_srli_epi16(p[0], Q * kBits), mask);
  } else if constexpr (Q < 6) {
    return _mm256_and_si256(Q % 2 == 0 ? p[Q / 2] : _mm256_srli_epi16(p[Q / 2], 3), mask);
  } else {
    // Upper bits at 6..7 of plane A or B, the lowest at bit Q of plane C.
    return _mm256_or_si256(masked(_mm256_srli_epi16(p[Q - 6], 5), kUpperBits),
                           masked(_mm256_srli_epi16(p[2], Q), kLowestBit));
  }
}

/// Codecs follow: quad<Q>(p) is the unsigned operands of quad Q from the planes p of a unit, kMost
/// the most rows whose sums fit registers with this codec.
template <int kBits>
struct Linear {
  static constexpr int kStored = kBits, kOperands = 1, kMost = 4;
  OCTAVO_INLINE explicit Linear(const LowbitPanel&) {}
  template <int Q>
  OCTAVO_INLINE __m256i quad(const __m256i* p) const {
    return code_quad<kBits, Q>(p);
  }
};

/// Sixteen levels in every lane, flipped by kFlip: 0x80 makes them unsigned (level + 128), 0 leaves
/// them. Those of quad Q of 2 bits take the low or the high half of an index of two codes.
template <int kBits, int kFlip, int Q>
OCTAVO_INLINE __m256i table_of(const LowbitPanel& p) {
  int8_t entries[16];
  for (int i = 0; i < 16; ++i) {
    const int code = kBits == 2 ? i >> (2 * (Q % 2)) & 3 : i & ((1 << kBits) - 1);
    entries[i] = static_cast<int8_t>(p.levels[code] ^ kFlip);
  }
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries)));
}

/// Indices of such tables.
template <int kBits, int Q>
OCTAVO_INLINE __m256i index_quad(const __m256i* p) {
  if constexpr (kBits != 2) return code_quad<kBits, Q>(p);
  return _mm256_and_si256(Q < 2 ? p[0] : _mm256_srli_epi16(p[0], 4), bytes(0x0f));
}

/// Levels by byte shuffles.
template <int kBits, int kFlip>
struct Shuffled {
  static constexpr int kStored = kBits, kOperands = 1, kMost = 4;
  OCTAVO_INLINE explicit Shuffled(const LowbitPanel& p)
      : even(table_of<kBits, kFlip, 0>(p)), odd(kBits == 2 ? table_of<kBits, kFlip, 1>(p) : even) {}
  template <int Q>
  OCTAVO_INLINE __m256i quad(const __m256i* p) const {
    return _mm256_shuffle_epi8(kBits == 2 && Q % 2 == 1 ? odd : even, index_quad<kBits, Q>(p));
  }
  __m256i even, odd;
};

/// Returns the scales of 8 columns; adds factor times their sums of levels to `sum`.
OCTAVO_INLINE __m256 take_words(const uint8_t* words, const LowbitPanel& p, int64_t column,
                                int32_t factor, __m256i& sum) {
  const __m256i word = load(words + 4 * column);
  if (p.wide) {
    const __m256i sums = load(words + 4 * (p.width + column));
    sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(sums, _mm256_set1_epi32(factor)));
    return _mm256_castsi256_ps(word);
  }
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(word, _mm256_set1_epi32(factor & 0xffff)));
  return _mm256_castsi256_ps(
      _mm256_and_si256(word, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u))));
}

OCTAVO_INLINE __m256i zeros_of(const LowbitPanel& p, const uint8_t* words, int64_t column) {
  const auto* at = words + (p.wide ? 8 : 4) * p.width + column;
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
}

/// Eight results, as far as the columns exist.
OCTAVO_INLINE void store_columns(float* to, __m256 v, int64_t columns) {
  if (columns >= 8) {
    _mm256_storeu_ps(to, v);
  } else if (columns > 0) {
    float some[8];
    _mm256_storeu_ps(some, v);
    __builtin_memcpy(to, some, static_cast<size_t>(columns) * sizeof(float));
  }
}
OCTAVO_INLINE __m256 load_columns(const float* from, int64_t columns) {
  float some[8] = {};
  if (columns >= 8) return _mm256_loadu_ps(from);
  if (columns > 0) __builtin_memcpy(some, from, static_cast<size_t>(columns) * sizeof(float));
  return _mm256_loadu_ps(some);
}

/// Prefetch distances: LowbitPanel's, or 0 where nothing is to be prefetched, which prefetches the
/// line that is read. Without a branch, with which GCC has too few registers for sums.
struct Ahead {
  int64_t l1 = 0, l2 = 0;
  OCTAVO_INLINE Ahead(const LowbitPanel& panel, bool asks) {
    if (asks) l1 = panel.ahead, l2 = panel.ahead_l2;
  }
};

/// Prefetches into a cache, `ahead` bytes after some lines.
template <_mm_hint kCache, int kLines>
OCTAVO_INLINE void ask_one(const void* lines, int64_t ahead) {
#pragma GCC unroll 4
  for (int line = 0; line < kLines; ++line) {
    _mm_prefetch(static_cast<const char*>(lines) + 64 * line + ahead, kCache);
  }
}
template <int kLines>
OCTAVO_INLINE void ask(const void* lines, const Ahead& ahead) {
  ask_one<_MM_HINT_T0, kLines>(lines, ahead.l1);
  ask_one<_MM_HINT_T1, kLines>(lines, ahead.l2);
}

/// Float sums of M rows x 8 V columns: reads their start, writes their results. In memory, since a
/// group ends rarely, and its integer sums need the registers.
template <int M, int V>
struct FloatSums {
  template <class Job>
  FloatSums(const Job& job, int64_t row, int64_t column) {
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) {
        const float* before = job.acc + (row + m) * kLowbitColumns + column + 8 * v;
        _mm256_store_ps(f[m][v], job.first ? _mm256_setzero_ps() : _mm256_load_ps(before));
      }
    }
  }
  OCTAVO_INLINE void add(int m, int v, __m256 sum, __m256 scale) {
    float* at = f[m][v];
    __asm__ volatile("" : "+r"(at));  // without this GCC keeps some in registers
    _mm256_store_ps(at, _mm256_fmadd_ps(sum, scale, _mm256_load_ps(at)));
  }
  /// y = finish(f, bias, row), or back to acc.
  template <class Job, class Finish>
  OCTAVO_INLINE void store(const Job& job, int64_t row, int64_t column, Finish&& finish) const {
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) {
        const int64_t n = column + 8 * v, left = job.panel.n - n;
        const __m256 sum = _mm256_load_ps(f[m][v]);
        if (!job.last) {
          _mm256_store_ps(job.acc + (row + m) * kLowbitColumns + n, sum);
          continue;
        }
        const __m256 bias = load_columns(job.bias + n, left);
        store_columns(job.y + (row + m) * job.ldy + n, finish(sum, bias, row + m), left);
      }
    }
  }
  alignas(32) float f[M][V][8];
};

// ---- few rows, straight from packed codes

/// Four activations in all lanes. kAgain: by assembly, because GCC keeps the quads of a unit on the
/// stack for the next vector of columns.
template <bool kAgain>
OCTAVO_INLINE __m256i broadcast_quad(const int8_t* a) {
  int32_t quad;
  if constexpr (kAgain) {
    __m256i all;
    __asm__ volatile("vpbroadcastd %1, %0"
                     : "=x"(all)
                     : "m"(*reinterpret_cast<const int8_t(*)[4]>(a)));
    return all;
  }
  __builtin_memcpy(&quad, a, 4);
  return _mm256_set1_epi32(quad);
}

/// The quad that is taken as number `i`: of three planes, the quads of A and C first, so that only
/// two planes are in registers at a time.
constexpr int quad_at(int stored, int i) {
  constexpr int kOrder[8] = {0, 1, 6, 2, 3, 7, 4, 5};
  return stored == 3 ? kOrder[i] : i;
}

/// Loads a plane of a unit. By assembly: GCC would load those of the next columns first and have no
/// registers for them.
OCTAVO_INLINE __m256i load_plane(const uint8_t* p) {
  __m256i plane;
  __asm__ volatile("vmovdqu %1, %0"
                   : "=x"(plane)
                   : "m"(*reinterpret_cast<const uint8_t(*)[32]>(p)));
  return plane;
}

/// Products of one unit, 8 columns, from its quad number I on; M rows.
template <int I, class Codec, int M, class Products>
OCTAVO_INLINE void multiply_unit(Products (&products)[M], const Codec& codec, __m256i (&p)[3],
                                 const uint8_t* codes, int64_t step, const int8_t* const (&a)[M]) {
  if constexpr (I < quads_of(Codec::kStored)) {
    constexpr int Q = quad_at(Codec::kStored, I);
    constexpr bool kAgain = Codec::kStored != 4 || M > 2;
    if constexpr (I == 0 && Codec::kStored == 3) p[2] = load_plane(codes + 2 * step);
    if constexpr (I == 0) p[0] = load_plane(codes);
    if constexpr (I == 3 && Codec::kStored == 3) p[1] = load_plane(codes + step);
    const auto u = codec.template quad<Q>(p);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      products[m].template add<I == 0>(u, broadcast_quad<kAgain>(a[m] + 4 * Q));
    }
    multiply_unit<I + 1, Codec, M>(products, codec, p, codes, step, a);
  }
}

/// M rows from `row` times 8 V columns from `column`. Codes are prefetched vector by vector in the
/// order of memory: 3-bit weights from memory take 14 % less time than with prefetches of whole
/// units.
template <class Dot, class Codec, int M, int V>
__attribute__((noinline)) void packed_tile(const PackedJob& job, int64_t row, int64_t column) {
  constexpr int kUnit = 4 * quads_of(Codec::kStored), kPlanes = planes_of(Codec::kStored);
  const LowbitPanel& panel = job.panel;
  const Codec codec(panel);
  using Products = typename Dot::template Products<Codec::kOperands>;
  const int64_t step = panel.width * 4;
  constexpr int kLines = (V + 1) / 2;
  const Ahead ahead(panel, row == 0 && column % 16 == 0);
  const int8_t* a[M];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) a[m] = job.a + (row + m) * job.pitch;
  FloatSums<M, V> sums(job, row, column);
  const uint8_t* words = panel.groups;
  for (int64_t g = 0; g < panel.count; ++g, words += panel.group_step) {
    const uint8_t* codes = words + panel.width * panel.word_bytes + column * 4;
    ask<kLines>(words + column * 4, ahead);
    __m256i sum[M][V];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[m][v] = _mm256_setzero_si256();
    }
    for (int64_t k = g + 1 < panel.count ? panel.group_codes : panel.last_codes; k > 0;
         k -= kUnit) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        for (int i = v * kPlanes * kLines / V; i < (v + 1) * kPlanes * kLines / V; ++i) {
          ask<1>(codes + i / kLines * step + i % kLines * 64, ahead);
        }
        __m256i p[3];
        Products products[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) products[m].begin(sum[m][v]);
        multiply_unit<0, Codec, M>(products, codec, p, codes + 32 * v, step, a);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) products[m].end(sum[m][v]);
      }
      codes += kPlanes * step;
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) a[m] += kUnit;
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const __m256i start = _mm256_set1_epi32(job.a_start[(row + m) * job.a_start_pitch + g]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const int64_t n = column + 8 * v;
        const bool affine = panel.kind == LowbitKind::kAffine;
        __m256i s = _mm256_add_epi32(
            sum[m][v], affine ? _mm256_mullo_epi32(zeros_of(panel, words, n), start) : start);
        const __m256 scale = take_words(words, panel, n, 128 - job.row_zero[row + m], s);
        sums.add(m, v, _mm256_cvtepi32_ps(s), scale);
      }
    }
  }
  sums.store(job, row, column, [&](__m256 total, __m256 bias, int64_t m) {
    return _mm256_fmadd_ps(total, _mm256_set1_ps(job.row_scale[m]), bias);
  });
}

/// M rows times all columns.
template <class Dot, class Codec, int M>
void packed_rows(const PackedJob& job, int64_t row) {
  constexpr int kSums = Dot::template kCodeSums<Codec>;
  constexpr int V = M == 1 ? 8 : M == 2 ? kSums / 2 : kSums / 4;
  const int64_t width = job.panel.width;
  int64_t column = 0;
  for (; column + 8 * V <= width; column += 8 * V) packed_tile<Dot, Codec, M, V>(job, row, column);
  if constexpr (V > 2) {
    for (; column < width; column += 16) packed_tile<Dot, Codec, M, 2>(job, row, column);
  }
}

template <class Dot, class Codec>
void packed_panel(const PackedJob& job) {
  cut_rows(job.rows, Codec::kMost, [&](int64_t row, int64_t m) {
    if constexpr (Codec::kMost >= 4) {
      if (m == 4) packed_rows<Dot, Codec, 4>(job, row);
    }
    if (m == 3) packed_rows<Dot, Codec, 3>(job, row);
    if (m == 2) packed_rows<Dot, Codec, 2>(job, row);
    if (m == 1) packed_rows<Dot, Codec, 1>(job, row);
  });
}

template <class Dot, template <int kBits> class Codec>
void multiply_packed(const PackedJob& job) {
  if (job.panel.stored == 4) packed_panel<Dot, Codec<4>>(job);
  if (job.panel.stored == 3) packed_panel<Dot, Codec<3>>(job);
  if (job.panel.stored == 2) packed_panel<Dot, Codec<2>>(job);
}

// ---- unpacking

template <int Q, class Codec>
OCTAVO_INLINE void unpack_quads(const Codec& codec, const __m256i* p, __m256i zero, int8_t* to,
                                int64_t step) {
  if constexpr (Q < quads_of(Codec::kStored)) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + Q * step),
                        _mm256_sub_epi8(codec.template quad<Q>(p), zero));
    unpack_quads<Q + 1>(codec, p, zero, to, step);
  }
}

template <class Codec>
void unpack_with(const LowbitPanel& panel, int32_t constant_zero, int8_t* levels) {
  constexpr int kUnit = 4 * quads_of(Codec::kStored), kPlanes = planes_of(Codec::kStored);
  const Codec codec(panel);
  const int64_t step = panel.width * 4;
  const Ahead ahead(panel, panel.width == kLowbitColumns);
  const uint8_t* words = panel.groups;
  for (int64_t g = 0; g < panel.count; ++g, words += panel.group_step) {
    const int64_t length = g + 1 < panel.count ? panel.group_codes : panel.last_codes;
    __m256i zero[kLowbitColumns / 8];
    for (int64_t column = 0; column < panel.width; column += 8) {
      zero[column / 8] = bytes(constant_zero);
      if (panel.kind == LowbitKind::kAffine) {
        zero[column / 8] =
            _mm256_mullo_epi32(zeros_of(panel, words, column), _mm256_set1_epi32(0x01010101));
      }
    }
    // In the order of memory.
    const uint8_t* codes = words + panel.width * panel.word_bytes;
    int8_t* to = levels;
    for (int64_t k = 0; k < length; k += kUnit) {
#pragma GCC unroll 4
      for (int i = 0; i < kPlanes; ++i) ask<4>(codes + i * step, ahead);
      for (int64_t column = 0; column < panel.width; column += 8) {
        __m256i p[kPlanes];
#pragma GCC unroll 4
        for (int i = 0; i < kPlanes; ++i) p[i] = load(codes + i * step + column * 4);
        unpack_quads<0>(codec, p, zero[column / 8], to + column * 4, step);
      }
      codes += kPlanes * step;
      to += kUnit / 4 * step;
    }
    levels += length * panel.width;
  }
}

template <int kStored>
void unpack_stored(const LowbitPanel& panel, int8_t* levels) {
  if (panel.kind == LowbitKind::kLevels) {
    unpack_with<Shuffled<kStored, 0>>(panel, 0, levels);
  } else {
    unpack_with<Linear<kStored>>(panel, panel.zero, levels);
  }
}

[[maybe_unused]] void unpack_levels(const LowbitPanel& panel, int8_t* levels) {
  if (panel.stored == 4) unpack_stored<4>(panel, levels);
  if (panel.stored == 3) unpack_stored<3>(panel, levels);
  if (panel.stored == 2) unpack_stored<2>(panel, levels);
}

// ---- products with unpacked levels: M rows x 8 V columns

template <class Dot, int M, int V>
__attribute__((noinline)) void integer_tile(const GroupJob& job, int64_t row, int64_t column) {
  const LowbitPanel& panel = job.panel;
  FloatSums<M, V> sums(job, row, column);
  const uint8_t* a[M];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) a[m] = job.a + (row + m) * job.pitch;
  const int8_t* group = job.b + column * 4;
  const uint8_t* words = panel.groups;
  const int64_t step = panel.width * 4;
  // Prefetches only levels that lie in memory, and only for one row: more rows need all registers.
  const bool asks = M == 1 && column == 0 && panel.stored == 8 && panel.width == kLowbitColumns;
  const Ahead ahead(panel, asks);
  for (int64_t g = 0; g < panel.count; ++g, words += panel.group_step, group += job.b_step) {
    __m256i sum[M][V];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[m][v] = _mm256_setzero_si256();
    }
    const int8_t* b = group;
    for (int64_t k = g + 1 < panel.count ? panel.group_codes : panel.last_codes; k > 0; k -= 4) {
      if (ahead.l2 != 0) {
        ask<4>(b, ahead);
      } else if (ahead.l1 != 0) {
        ask_one<_MM_HINT_T0, 4>(b, ahead.l1);
      }
      if constexpr (M == 1) {  // eight vectors of weights would not fit beside their sums
        const typename Dot::A u = Dot::broadcast(a[0]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) Dot::add(sum[0][v], u, Dot::load_b(b + 32 * v));
        a[0] += 4;
      } else {
        const typename Dot::B w0 = Dot::load_b(b), w1 = Dot::load_b(b + 32);
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m) {
          const typename Dot::A u = Dot::broadcast(a[m]);
          Dot::add(sum[m][0], u, w0);
          Dot::add(sum[m][1], u, w1);
          a[m] += 4;
        }
      }
      b += step;
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) {
        const int32_t zero = job.row_zero[row + m];
        const __m256 scale = take_words(words, panel, column + 8 * v, -zero, sum[m][v]);
        sums.add(m, v, _mm256_cvtepi32_ps(sum[m][v]), scale);
      }
    }
  }
  sums.store(job, row, column, [&](__m256 f, __m256 bias, int64_t m) {
    return _mm256_fmadd_ps(f, _mm256_set1_ps(job.row_scale[m]), bias);
  });
}

template <int J, int M>
OCTAVO_INLINE void multiply_input(__m256 (&sum)[M][2], __m256i w0, __m256i w1,
                                  const float* const (&x)[M]) {
  const __m256i top0 = J == 3 ? w0 : _mm256_slli_epi32(w0, 24 - 8 * J);
  const __m256i top1 = J == 3 ? w1 : _mm256_slli_epi32(w1, 24 - 8 * J);
  const __m256 level0 = _mm256_cvtepi32_ps(_mm256_srai_epi32(top0, 24));
  const __m256 level1 = _mm256_cvtepi32_ps(_mm256_srai_epi32(top1, 24));
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    const __m256 value = _mm256_set1_ps(x[m][J]);
    sum[m][0] = _mm256_fmadd_ps(value, level0, sum[m][0]);
    sum[m][1] = _mm256_fmadd_ps(value, level1, sum[m][1]);
  }
}

template <int M>
__attribute__((noinline)) void float_tile(const GroupJob& job, int64_t row, int64_t column) {
  const LowbitPanel& panel = job.panel;
  FloatSums<M, 2> sums(job, row, column);
  const float* x[M];
  for (int m = 0; m < M; ++m) x[m] = job.x + (row + m) * job.ldx;
  const int8_t* group = job.b + column * 4;
  const uint8_t* words = panel.groups;
  const int64_t step = panel.width * 4;
  for (int64_t g = 0; g < panel.count; ++g, words += panel.group_step, group += job.b_step) {
    __m256 sum[M][2];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) sum[m][0] = sum[m][1] = _mm256_setzero_ps();
    const int8_t* b = group;
    int64_t left = g + 1 < panel.count ? job.group : job.last_group;
    for (; left > 0; left -= 4, b += step) {
      const __m256i w0 = load(b), w1 = load(b + 32);
      multiply_input<0, M>(sum, w0, w1, x);
      if (left < 4) {
        if (left > 1) multiply_input<1, M>(sum, w0, w1, x);
        if (left > 2) multiply_input<2, M>(sum, w0, w1, x);
        break;
      }
      multiply_input<1, M>(sum, w0, w1, x);
      multiply_input<2, M>(sum, w0, w1, x);
      multiply_input<3, M>(sum, w0, w1, x);
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) x[m] += 4;
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < 2; ++v) {
        __m256i none = _mm256_setzero_si256();
        const __m256 scale = take_words(words, panel, column + 8 * v, 0, none);
        sums.add(m, v, sum[m][v], scale);
      }
    }
  }
  sums.store(job, row, column,
             [](__m256 f, __m256 bias, int64_t) { return _mm256_add_ps(f, bias); });
}

using GroupTile = void (*)(const GroupJob&, int64_t row, int64_t column);

inline void sweep_groups(const GroupJob& job, const GroupTile* tiles, int64_t most) {
  cut_rows(job.rows, most, [&](int64_t row, int64_t m) {
    for (int64_t column = 0; column < job.panel.width; column += 16) tiles[m](job, row, column);
  });
}

/// Tiles of Dot::kPixels rows at most, as in ymm_gemm.h: 4 or 6.
template <class Dot>
void gemm_u8s8_groups(const GroupJob& job) {
  if (job.rows == 1 && job.panel.width == kLowbitColumns) {
    return integer_tile<Dot, 1, 8>(job, 0, 0);
  }
  if constexpr (Dot::kPixels == 6) {
    static constexpr GroupTile tiles[] = {nullptr,
                                          integer_tile<Dot, 1, 2>,
                                          integer_tile<Dot, 2, 2>,
                                          integer_tile<Dot, 3, 2>,
                                          integer_tile<Dot, 4, 2>,
                                          integer_tile<Dot, 5, 2>,
                                          integer_tile<Dot, 6, 2>};
    sweep_groups(job, tiles, 6);
  } else {
    static constexpr GroupTile tiles[] = {nullptr, integer_tile<Dot, 1, 2>, integer_tile<Dot, 2, 2>,
                                          integer_tile<Dot, 3, 2>, integer_tile<Dot, 4, 2>};
    sweep_groups(job, tiles, 4);
  }
}

[[maybe_unused]] void gemm_f32s8_groups(const GroupJob& job) {
  static constexpr GroupTile tiles[] = {nullptr,       float_tile<1>, float_tile<2>,
                                        float_tile<3>, float_tile<4>, float_tile<5>};
  sweep_groups(job, tiles, 5);
}

/// Sums four bytes at a time by vpmaddubsw (ones times s8: no saturation) and vpmaddwd.
[[maybe_unused]] int32_t flip_u8_s8(uint8_t* codes, int64_t count) {
  const __m256i flip = bytes(0x80), ones = bytes(1), one_words = _mm256_set1_epi16(1);
  __m256i sum = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m256i flipped = _mm256_xor_si256(load(codes + i), flip);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(ones, flipped), one_words));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i), flipped);
  }
  int32_t parts[8], total = 0;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts), sum);
  for (const int32_t part : parts) total += part;
  for (; i < count; ++i) {
    codes[i] ^= 128;
    total += static_cast<int8_t>(codes[i]);
  }
  return total;
}

}  // namespace
}  // namespace octavo

// Rows of floats times weights read directly from packed memory: levels become floats in registers,
// those of 2 to 4 bits by permutes of a table of sixteen floats, and nothing is unpacked. Filled
// into the row by table.cpp; called by kernels/lowbit.cpp.
#include "../../kernel_table.h"
#include "packed_product.h"

namespace octavo::avx512_vnni {
namespace {

/// A table of floats, indexed by the low four bits. At 2 and 3 bits it repeats, so that the bits of
/// neighbouring codes in an index need no mask.
template <int kStored>
__m512 float_table(const LowbitPanel& panel) {
  static constexpr Places places(0, (1 << kStored) - 1);
  const __m128i place = _mm_load_si128(reinterpret_cast<const __m128i*>(places.entry));
  __m128i level = place;
  if (panel.kind == LowbitKind::kLevels) {
    __m128i levels = _mm_setzero_si128();
    __builtin_memcpy(&levels, panel.levels, size_t{1} << kStored);
    level = _mm_shuffle_epi8(levels, place);
  } else if (panel.kind == LowbitKind::kSymmetric) {
    level = _mm_sub_epi8(place, _mm_set1_epi8(static_cast<char>(panel.zero)));
  }
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(level));
}

/// Levels as floats. word<Q>: what holds the codes of quad Q of sixteen columns; level<Q, J>: those
/// of its input J.
template <int kBits>
struct Permuted {
  static constexpr int kStored = kBits;
  explicit Permuted(const LowbitPanel& panel) : table(float_table<kBits>(panel)) {}
  template <int Q>
  OCTAVO_INLINE __m512i word(const uint8_t* codes, int64_t step) const {
    if constexpr (kBits != 3) {
      return load(codes);
    } else if constexpr (Q < 6) {
      return load(codes + Q / 2 * step);
    } else {
      const __m512i low = _mm512_srli_epi16(load(codes + 2 * step), Q - 5);
      return select(bytes(0xc0), load(codes + (Q - 6) * step), low);
    }
  }
  template <int Q, int J>
  OCTAVO_INLINE __m512 level(__m512i word) const {
    constexpr int kPlace = kBits != 3 ? Q * kBits : Q < 6 ? Q % 2 * 3 : 5;
    constexpr int kShift = 8 * J + kPlace;
    return _mm512_permutexvar_ps(kShift == 0 ? word : _mm512_srli_epi32(word, kShift), table);
  }
  __m512 table;
};

/// Bytes that are levels.
struct Converted {
  static constexpr int kStored = 8;
  explicit Converted(const LowbitPanel&) {}
  template <int Q>
  OCTAVO_INLINE __m512i word(const uint8_t* codes, int64_t) const {
    return load(codes);
  }
  template <int Q, int J>
  OCTAVO_INLINE __m512 level(__m512i word) const {
    const __m512i top = J == 3 ? word : _mm512_slli_epi32(word, 24 - 8 * J);
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24));
  }
};

/// M rows of floats at one pitch. Every fourth has a pointer: one for each would need all
/// registers.
template <int M>
struct FloatRows {
  OCTAVO_INLINE FloatRows(const float* first, int64_t row_pitch) : pitch(row_pitch) {
    for (int i = 0; i < kPointers; ++i) fourth[i] = first + 4 * i * row_pitch;
  }
  OCTAVO_INLINE const float* operator[](int m) const { return fourth[m / 4] + m % 4 * pitch; }
  OCTAVO_INLINE void skip(int64_t inputs) {
    for (int i = 0; i < kPointers; ++i) fourth[i] += inputs;
  }
  static constexpr int kPointers = (M + 3) / 4;
  const float* fourth[kPointers];
  int64_t pitch;
};

/// Products of the inputs of a quad from its number J on.
template <int Q, int J, class Codec, bool kAffine, int M, int V>
OCTAVO_INLINE void multiply_inputs(__m512 (&sum)[M][V], const Codec& codec,
                                   const __m512i (&word)[V], const __m512 (&zero)[V],
                                   const FloatRows<M>& x) {
  if constexpr (J < 4) {
    __m512 level[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      level[v] = codec.template level<Q, J>(word[v]);
      if constexpr (kAffine) level[v] = _mm512_sub_ps(level[v], zero[v]);
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const __m512 value = _mm512_set1_ps(x[m][4 * Q + J]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] = _mm512_fmadd_ps(value, level[v], sum[m][v]);
    }
    multiply_inputs<Q, J + 1, Codec, kAffine, M, V>(sum, codec, word, zero, x);
  }
}

/// Products of a unit of codes from its quad number Q on.
template <int Q, class Codec, bool kAffine, int M, int V>
OCTAVO_INLINE void multiply_quads(__m512 (&sum)[M][V], const Codec& codec, const uint8_t* codes,
                                  int64_t step, const Ahead& ahead, const __m512 (&zero)[V],
                                  const FloatRows<M>& x) {
  if constexpr (Q < quads_of(Codec::kStored)) {
    if constexpr (Q < planes_of(Codec::kStored)) ask<V>(codes + Q * step, ahead);
    __m512i word[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) word[v] = codec.template word<Q>(codes + 64 * v, step);
    multiply_inputs<Q, 0, Codec, kAffine, M, V>(sum, codec, word, zero, x);
    multiply_quads<Q + 1, Codec, kAffine, M, V>(sum, codec, codes, step, ahead, zero, x);
  }
}

constexpr int kLargestUnit = 32;  // inputs

/// The last inputs of a group, fewer than a unit, with zeros behind them: sums that begin at +0
/// stay as they are.
template <int M>
OCTAVO_INLINE void copy_rest(const FloatRows<M>& x, int64_t inputs,
                             float (&rest)[M][kLargestUnit]) {
  for (int m = 0; m < M; ++m) {
    __builtin_memset(rest[m], 0, sizeof rest[m]);
    __builtin_memcpy(rest[m], x[m], static_cast<size_t>(inputs) * sizeof(float));
  }
}

OCTAVO_INLINE __m512 scales_of(const uint8_t* words, const LowbitPanel& p, int64_t column) {
  const __m512i word = load(words + 4 * column);
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  return _mm512_castsi512_ps(p.wide ? word : _mm512_and_si512(word, upper));
}

/// M rows from `row` times 16 V columns from `column`.
template <class Codec, bool kAffine, int M, int V>
__attribute__((noinline)) void float_tile(const GroupJob& job, int64_t row, int64_t column) {
  constexpr int kUnit = 4 * quads_of(Codec::kStored);
  const LowbitPanel& panel = job.panel;
  const Codec codec(panel);
  const int64_t step = panel.width * 4;
  const Ahead ahead{panel.ahead, panel.ahead_l2};
  StoredSums<M, V> sums(job, row, column);
  const float* group = job.x + row * job.ldx;
  const uint8_t* words = panel.groups;
  for (int64_t g = 0; g < panel.count; ++g, words += panel.group_step, group += job.group) {
    const uint8_t* codes = words + panel.width * panel.word_bytes + column * 4;
    ask<V>(words + 4 * column, ahead);
    __m512 zero[V], sum[M][V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      zero[v] = _mm512_setzero_ps();
      if constexpr (kAffine) {
        const auto* at = words + (panel.wide ? 8 : 4) * panel.width + column + 16 * v;
        const __m128i zeros = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
        zero[v] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zeros));
      }
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) sum[m][v] = _mm512_setzero_ps();
    }
    FloatRows<M> x(group, job.ldx);
    float rest[M][kLargestUnit];
    int64_t left = g + 1 < panel.count ? job.group : job.last_group;
    for (; left > 0; left -= kUnit, codes += planes_of(Codec::kStored) * step) {
      if (left < kUnit) {
        copy_rest<M>(x, left, rest);
        x = FloatRows<M>(rest[0], kLargestUnit);
      }
      __asm__("" : "+r"(left));  // without this GCC adds a second loop body
      multiply_quads<0, Codec, kAffine, M, V>(sum, codec, codes, step, ahead, zero, x);
      x.skip(kUnit);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const __m512 scale = scales_of(words, panel, column + 16 * v);
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) sums.add(m, v, sum[m][v], scale);
    }
  }
  sums.store(job, row, column,
             [](__m512 total, __m512 bias, int64_t) { return _mm512_add_ps(total, bias); });
}

constexpr int kMostWide = 5;  // rows of a tile of 64 columns
/// Rows of any tile; zero points are rarer and get fewer tiles.
constexpr int most_rows(bool affine) { return affine ? 6 : 12; }

/// M rows times the last sixteen columns of a panel: four at a time, as few panels have any.
template <class Codec, bool kAffine, int M>
void narrow_rows(const GroupJob& job, int64_t row, int64_t column) {
  constexpr int kRows = M < 4 ? M : 4;
  float_tile<Codec, kAffine, kRows, 1>(job, row, column);
  if constexpr (M > kRows) narrow_rows<Codec, kAffine, M - kRows>(job, row + kRows, column);
}

/// M rows times all columns of the panel.
template <class Codec, bool kAffine, int M>
void float_rows(const GroupJob& job, int64_t row) {
  const int64_t width = job.panel.width;
  int64_t column = 0;
  if constexpr (M <= kMostWide) {
    if (width == 64) return float_tile<Codec, kAffine, M, 4>(job, row, 0);
  }
  for (; column + 32 <= width; column += 32) float_tile<Codec, kAffine, M, 2>(job, row, column);
  if (column < width) narrow_rows<Codec, kAffine, M>(job, row, column);
}

/// The tile of `rows` rows, at most M.
template <class Codec, bool kAffine, int M = most_rows(kAffine)>
void float_rows_of(int64_t rows, const GroupJob& job, int64_t row) {
  if constexpr (M > 0) {
    if (rows == M) return float_rows<Codec, kAffine, M>(job, row);
    float_rows_of<Codec, kAffine, M - 1>(rows, job, row);
  }
}

template <class Codec, bool kAffine>
void float_panel(const GroupJob& job) {
  cut_rows(job.rows, most_rows(kAffine),
           [&](int64_t row, int64_t m) { float_rows_of<Codec, kAffine>(m, job, row); });
}

template <int kStored>
void multiply_codes(const GroupJob& job) {
  if (job.panel.kind == LowbitKind::kAffine) {
    float_panel<Permuted<kStored>, true>(job);
  } else {
    float_panel<Permuted<kStored>, false>(job);
  }
}

void multiply_floats(const GroupJob& job) {
  if (job.panel.stored == 2) multiply_codes<2>(job);
  if (job.panel.stored == 3) multiply_codes<3>(job);
  if (job.panel.stored == 4) multiply_codes<4>(job);
  if (job.panel.stored == 8) float_panel<Converted, false>(job);
}

}  // namespace

void fill_lowbit_float(LowbitTable& table) { table.multiply_floats = multiply_floats; }

}  // namespace octavo::avx512_vnni

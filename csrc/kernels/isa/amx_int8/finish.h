// Sums in memory become results, 64 at a time. Included by gemm.cpp and few_pixels.h.
#pragma once

#include "work.h"

namespace octavo::OCTAVO_AMX {
namespace {

/// Four vectors of 16 codes in [.., 255] become 64 bytes in order; negative ones become 0.
OCTAVO_INLINE __m512i pack_codes(__m512i v0, __m512i v1, __m512i v2, __m512i v3) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i packed =
      _mm512_packus_epi16(_mm512_packs_epi32(v0, v1), _mm512_packs_epi32(v2, v3));
  return _mm512_permutexvar_epi32(order, packed);
}

/// Stores NT vectors' worth of columns of each of 4 / NT pixels.
template <int NT, bool kWhole>
OCTAVO_INLINE void store_codes(__m512i codes, uint8_t* const (&out)[4 / NT], uint64_t mask) {
  if constexpr (NT == 4) {
    if constexpr (kWhole) {
      _mm512_storeu_si512(out[0], codes);
    } else {
      _mm512_mask_storeu_epi8(out[0], mask, codes);
    }
  } else if constexpr (NT == 2) {
    const __m256i part[2] = {_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64(codes, 1)};
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
      if constexpr (kWhole) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[p]), part[p]);
      } else {
        _mm256_mask_storeu_epi8(out[p], static_cast<__mmask32>(mask), part[p]);
      }
    }
  } else {
    const __m128i part[4] = {_mm512_castsi512_si128(codes), _mm512_extracti32x4_epi32(codes, 1),
                             _mm512_extracti32x4_epi32(codes, 2),
                             _mm512_extracti32x4_epi32(codes, 3)};
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      if constexpr (kWhole) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out[p]), part[p]);
      } else {
        _mm_mask_storeu_epi8(out[p], static_cast<__mmask16>(mask), part[p]);
      }
    }
  }
}

/// maxps and minps return their second operand where one is NaN or both are zero: lo for a NaN, as
/// the specification.
OCTAVO_INLINE __m512 clamp(__m512 v, __m512 lo, __m512 hi) {
  return _mm512_min_ps(_mm512_max_ps(v, lo), hi);
}

/// The parameters of sixteen columns for a kind of job.
template <Kind kKind>
struct Columns {
  __m512 scale, offset;
  __m512i start;  // by_rows: the sums of the columns

  Columns() = default;
  OCTAVO_INLINE Columns(const GemmJob& job, int64_t column)
      : scale(channels(job, job.scale, column)),
        offset(channels(job, job.offset, column)),
        start(channels(job, by_rows(kKind) ? job.colsum : job.start, column)) {}

  /// kU8: not clamped.
  OCTAVO_INLINE __m512 value(const GemmJob& job, __m512i products, int64_t x) const {
    if constexpr (by_rows(kKind)) {
      const __m512i zero = _mm512_set1_epi32(job.row_zero[x]);
      const __m512i sum = _mm512_sub_epi32(products, _mm512_mullo_epi32(zero, start));
      const __m512 row_scale = _mm512_set1_ps(job.row_scale[x]);
      const __m512 v = _mm512_cvtepi32_ps(sum);
      if constexpr (kKind == Kind::kRows) {
        return _mm512_fmadd_ps(v, _mm512_mul_ps(row_scale, scale), offset);
      }
      return _mm512_fmadd_ps(_mm512_fmadd_ps(v, scale, _mm512_setzero_ps()), row_scale, offset);
    }
    const __m512i sum = _mm512_add_epi32(products, start);
    const __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, offset);
    return kKind == Kind::kU8 ? v : clamp(v, _mm512_set1_ps(job.lo), _mm512_set1_ps(job.hi));
  }
};

/// What the results of a block are and where they go, known at compile time.
template <Kind kind, int columns, bool residual, bool linear, bool plain>
struct Target {
  static constexpr Kind kKind = kind;
  static constexpr int NT = columns, kPixels = 4 / columns;  // of 64 results
  static constexpr bool kResidual = residual, kLinear = linear;
  // All columns exist, and codes may be clamped as bytes.
  static constexpr bool kPlain = plain;
};

/// Turns the sums in pieces into results. Parameters stay in registers.
template <class T>
class Finisher {
 public:
  OCTAVO_INLINE Finisher(const Work& work, int64_t column)
      : work_(work), out_pitch_(work.out_pitch), residual_pitch_(work.residual_pitch) {
#pragma GCC unroll 4
    for (int j = 0; j < T::NT; ++j) columns_[j] = {*work.job, column + 16 * j};
    hi_ = _mm512_set1_ps(work.job->hi);
    lo_ = _mm512_set1_epi8(static_cast<char>(work.lo));
    hi_code_ = _mm512_set1_epi8(static_cast<char>(work.hi));
    residual_scale_ = _mm512_set1_ps(work.job->residual_scale);
  }

  /// Writes 64 results: pixels from r on of tile row i.
  OCTAVO_INLINE void part(const Block& block, const TilePiece* pieces, int64_t i, int64_t r) const {
    const TilePiece* piece = pieces + i * T::NT;
    uint8_t* out[T::kPixels];
#pragma GCC unroll 4
    for (int p = 0; p < T::kPixels; ++p) out[p] = result(block, i, r + p);
    if constexpr (T::kKind == Kind::kU8) {
      codes(block, piece, i, r, out);
    } else {
      floats(block, piece, i, r, out);
    }
  }

  /// Prefetches the cache lines of these results where there are many: rows of floats.
  OCTAVO_INLINE void ask(const Block& block, int64_t i, int64_t r) const {
    if constexpr (by_rows(T::kKind)) {
#pragma GCC unroll 4
      for (int p = 0; p < T::kPixels; ++p) {
        for (int j = 0; j < T::NT; ++j) __builtin_prefetch(result(block, i, r + p) + 64 * j, 1, 3);
      }
    }
  }

 private:
  OCTAVO_INLINE uint8_t* result(const Block& block, int64_t i, int64_t r) const {
    return T::kLinear ? block.line[i] + r * out_pitch_ : block.out[16 * i + r];
  }

  /// Codes are clamped as bytes: rounding is monotone, and the pack turns negative codes and NaN
  /// (INT_MIN after the conversion) into 0. Only values that may be too large for an int32 are
  /// clamped to hi before: minps(hi, v) returns v where v is NaN.
  OCTAVO_INLINE void codes(const Block& block, const TilePiece* piece, int64_t i, int64_t r,
                           uint8_t* const (&out)[T::kPixels]) const {
    __m512i code[4];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const int p = q / T::NT, j = q % T::NT;
      __m512 v = columns_[j].value(*work_.job, _mm512_load_si512(piece[j].row[r + p]), 0);
      if constexpr (T::kResidual) {
        const uint8_t* residual = T::kLinear ? block.residual_line[i] + (r + p) * residual_pitch_
                                             : block.residual[16 * i + r + p];
        const auto* at = reinterpret_cast<const __m128i*>(residual + 16 * j);
        const __m512 y = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at)));
        v = _mm512_fmadd_ps(y, residual_scale_, v);
      }
      code[q] = _mm512_cvtps_epi32(T::kPlain ? v : _mm512_min_ps(hi_, v));
    }
    __m512i packed = pack_codes(code[0], code[1], code[2], code[3]);
    if constexpr (T::kPlain) packed = _mm512_min_epu8(packed, hi_code_);
    store_codes<T::NT, T::kPlain>(_mm512_max_epu8(packed, lo_), out, block.columns_mask);
  }

  OCTAVO_INLINE void floats(const Block& block, const TilePiece* piece, int64_t i, int64_t r,
                            uint8_t* const (&out)[T::kPixels]) const {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const int p = q / T::NT, j = q % T::NT;
      if (r + p >= work_.tile_rows) break;
      const __m512 v = columns_[j].value(*work_.job, _mm512_load_si512(piece[j].row[r + p]),
                                         block.pixel[i] + r + p);
      auto* to = reinterpret_cast<float*>(out[p]) + 16 * j;
      if constexpr (T::kPlain) {
        _mm512_storeu_ps(to, v);
      } else {
        _mm512_mask_storeu_ps(to, static_cast<__mmask16>(block.columns_mask >> 16 * j), v);
      }
    }
  }

  const Work& work_;
  int64_t out_pitch_, residual_pitch_;
  Columns<T::kKind> columns_[T::NT];
  __m512 hi_, residual_scale_;
  __m512i lo_, hi_code_;
};

}  // namespace
}  // namespace octavo::OCTAVO_AMX

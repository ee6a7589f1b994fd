// What one dense job keeps beside its GemmJob, and the block whose sums are in tiles. Included by
// walk.h, finish.h, few_pixels.h and gemm.cpp.
#pragma once

#include <immintrin.h>

#include "../../kernel_table.h"
#include "../../panel.h"
#include "tile.h"

#define OCTAVO_INLINE inline __attribute__((always_inline))

namespace octavo::OCTAVO_AMX {
namespace {

constexpr int64_t kDeep = 24;  // steps of a panel that comes from L3, most likely

/// kLevelRows: as kRows, but y = fmaf(float(sum) * scale, row_scale, offset), and columns lie as
/// unpacked levels do, [k / 4][width][4].
enum class Kind { kU8, kF32, kRows, kLevelRows };

constexpr bool by_rows(Kind kind) { return kind == Kind::kRows || kind == Kind::kLevelRows; }

/// What holds for the whole job, and where pixels that must not be stored are written instead.
struct Work {
  const GemmJob* job;
  int64_t tile_rows;  // pixels of a tile: 16, or fewer where the grid has no more in a line
  int64_t steps;      // of K
  int64_t out_pitch, residual_pitch;  // bytes from a pixel of a line to the next
  uint8_t lo, hi;                     // gemm_u8s8_u8: the clamps as codes
  bool bounded;                       // every result fits into an int32 before it is clamped
  alignas(64) uint8_t trash[256];
  alignas(64) uint8_t zeros[64];
};

/// Sums of mt x nt tiles in registers or, after them, in pieces. Tile (i, j) is 16 pixels x 16
/// columns and lies in register and piece i * nt + j.
struct Block {
  int mt = 0, nt = 0;  // 0: none
  // Tile row i.
  void (*finish)(const Work&, const Block&, const TilePiece* pieces, int64_t i) = nullptr;
  int64_t column = 0;         // first
  uint64_t columns_mask = 0;  // of those that exist
  int64_t pixel[4];           // of tile row i: column in the grid of the first pixel
  uint8_t* line[4];           // its results at `column`, if its pixels have one pitch
  const uint8_t* residual_line[4];
  uint8_t* out[64];  // else each pixel's
  const uint8_t* residual[64];
};

/// The columns that exist of sixteen, where `left` are left.
OCTAVO_INLINE __mmask16 existing(int64_t left) {
  return static_cast<__mmask16>(left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0);
}

/// Parameters of sixteen channels; 0 where there is none.
OCTAVO_INLINE __m512 channels(const GemmJob& job, const float* values, int64_t column) {
  return _mm512_maskz_loadu_ps(existing(job.n - column), values + column);
}
OCTAVO_INLINE __m512i channels(const GemmJob& job, const int32_t* values, int64_t column) {
  return _mm512_maskz_loadu_epi32(existing(job.n - column), values + column);
}

/// The largest magnitude of channel parameters; NaN if one is, whose bits are the largest.
OCTAVO_INLINE float largest(const GemmJob& job, const float* values) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i most = _mm512_setzero_si512();
  for (int64_t c = 0; c < job.n; c += 16) {
    const __m512i bits = _mm512_castps_si512(channels(job, values, c));
    most = _mm512_max_epu32(most, _mm512_and_si512(bits, magnitude));
  }
  return __builtin_bit_cast(float, _mm512_reduce_max_epu32(most));
}

template <Kind kKind>
OCTAVO_INLINE void prepare(const GemmJob& job, Work& work) {
  work.job = &job;
  work.steps = job.joined_rows > 0 ? job.depth / 64 : job.runs * (job.run_bytes / 64);
  if constexpr (kKind == Kind::kU8) {
    const auto code_of = [](float v) {
      v = v > 0.0f ? v : 0.0f;
      return static_cast<uint8_t>(_mm_cvtss_si32(_mm_set_ss(v < 255.0f ? v : 255.0f)));
    };
    work.lo = code_of(job.lo < job.hi ? job.lo : job.hi);
    work.hi = code_of(job.hi);
    const float scale = largest(job, job.scale), offset = largest(job, job.offset);
    const float residual =
        job.residual != nullptr ? 255.0f * __builtin_fabsf(job.residual_scale) : 0.0f;
    // A sum is at most 2^31; false for NaN.
    work.bounded = scale * 0x1p31f + offset + residual < 0x1p30f;
  }
}

}  // namespace
}  // namespace octavo::OCTAVO_AMX

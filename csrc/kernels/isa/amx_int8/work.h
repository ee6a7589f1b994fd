// What one dense job keeps beside its GemmJob: parameters padded to a panel, and the block whose
// sums are in tiles. Included by walk.h, finish.h, few_pixels.h and gemm.cpp.
#pragma once

#include <immintrin.h>

#include "../../kernel_table.h"
#include "../../panel.h"
#include "tile.h"

#define OCTAVO_INLINE inline __attribute__((always_inline))

namespace octavo::OCTAVO_AMX {
namespace {

constexpr int64_t kPanelColumns = 64;  // at most
constexpr int64_t kDeep = 24;          // steps of a panel that comes from L3, most likely

enum class Kind { kU8, kF32, kRows };

/// The job's parameters padded to a whole panel, and where pixels that must not be stored go
/// instead.
struct Work {
  const GemmJob* job;
  int64_t tile_rows;  // pixels of a tile: 16, or fewer where the grid has no more in a line
  int64_t steps;      // of K
  int64_t out_pitch, residual_pitch;  // bytes from a pixel of a line to the next
  uint8_t lo, hi;                     // gemm_u8s8_u8: the clamps as codes
  bool bounded;                       // every result fits into an int32 before it is clamped
  alignas(64) int32_t start[64];
  alignas(64) float scale[64];
  alignas(64) float offset[64];
  alignas(64) int32_t colsum[64];
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

/// Copies `count` channel parameters and fills up to a panel with zeros.
template <class T>
OCTAVO_INLINE void pad(T* to, const T* from, int64_t count) {
  for (int64_t c = 0; c < kPanelColumns; ++c) to[c] = c < count ? from[c] : T{};
}

/// The largest magnitude of a panel's channel parameters; NaN if one is, whose bits are the
/// largest.
OCTAVO_INLINE float largest(const float* values) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i most = _mm512_setzero_si512();
  for (int64_t c = 0; c < kPanelColumns; c += 16) {
    most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_load_si512(values + c), magnitude));
  }
  return __builtin_bit_cast(float, _mm512_reduce_max_epu32(most));
}

template <Kind kKind>
OCTAVO_INLINE void prepare(const GemmJob& job, Work& work) {
  work.job = &job;
  work.steps = job.joined_rows > 0 ? job.depth / 64 : job.runs * (job.run_bytes / 64);
  pad(work.scale, job.scale, job.n);
  pad(work.offset, job.offset, job.n);
  if constexpr (kKind == Kind::kRows) {
    pad(work.start, work.start, 0);
    pad(work.colsum, job.colsum, job.n);
  } else {
    pad(work.start, job.start, job.n);
  }
  if constexpr (kKind == Kind::kU8) {
    const auto code_of = [](float v) {
      v = v > 0.0f ? v : 0.0f;
      return static_cast<uint8_t>(_mm_cvtss_si32(_mm_set_ss(v < 255.0f ? v : 255.0f)));
    };
    work.lo = code_of(job.lo < job.hi ? job.lo : job.hi);
    work.hi = code_of(job.hi);
    const float scale = largest(work.scale), offset = largest(work.offset);
    const float residual =
        job.residual != nullptr ? 255.0f * __builtin_fabsf(job.residual_scale) : 0.0f;
    // A sum is at most 2^31; false for NaN.
    work.bounded = scale * 0x1p31f + offset + residual < 0x1p30f;
  }
}

}  // namespace
}  // namespace octavo::OCTAVO_AMX

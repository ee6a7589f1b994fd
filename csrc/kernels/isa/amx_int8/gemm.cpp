// Dense products by AMX tiles: 16 pixels x 16 columns a tile, 64 of K a step. Filled into the row
// amx_int8 by table.cpp; called by product_dense.cpp. tile.h wraps the instructions. A block is the
// pixels x columns whose sums are in tile registers at one time; the AVX-512 epilogue of one block
// runs between the K steps of the next.
#include <immintrin.h>

#include "../../kernel_table.h"
#include "tile.h"

namespace octavo::OCTAVO_AMX {
namespace {

#define OCTAVO_INLINE inline __attribute__((always_inline))

constexpr int64_t kPanelColumns = 64;  // at most

// ---- what a job needs beside its GemmJob
// -----------------------------------------------------------------

/// The job's parameters padded to a whole panel, and where pixels that must not be stored go
/// instead.
struct Work {
  const GemmJob* job;
  int64_t tile_rows;  // pixels of a tile: 16, or fewer where the grid has no more in a line
  int64_t steps;      // of K
  uint8_t lo;         // gemm_u8s8_u8: the lower clamp as a code
  alignas(64) int32_t start[64];
  alignas(64) float scale[64];
  alignas(64) float offset[64];
  alignas(64) int32_t colsum[64];
  alignas(64) uint8_t trash[256];
  alignas(64) uint8_t zeros[64];
};

/// A block whose sums are in tiles or, after them, in pieces. Tile (i, j) is 16 pixels x 16 columns
/// and lies in register and piece i * nt + j.
struct Block {
  int tiles = 0;  // in registers; 0: none
  int64_t chunks = 0;
  void (*finish)(const Work&, const Block&, int64_t chunk) = nullptr;
  int64_t column = 0;         // first
  int tile_shift = 0;         // a tile row i has 2^tile_shift chunks
  uint64_t columns_mask = 0;  // of those that exist
  bool whole = false;         // all exist
  int64_t pixel[4];           // column in the grid of the first pixel of tile row i
  uint8_t* out[64];           // of each pixel, at `column`
  const uint8_t* residual[64];
  TilePiece piece[4];
};

/// Walks over the grid in tiles of at most 16 pixels whose activations have one pitch. Either the
/// whole grid is one line, because a row's pitch is a multiple of a pixel's (pixels between two
/// rows are computed and not stored), or every row is a line. The last tile of a line is moved back
/// so that it ends with the line: what it computes twice is stored once, and nothing beyond the
/// line is read.
class Walk {
 public:
  explicit Walk(const GemmJob& job, bool f32) : w_(job.w), h_(job.h) {
    a_pixel_ = job.a_pixel_pitch, a_row_ = job.a_row_pitch;
    if (f32) {
      out_ = reinterpret_cast<uint8_t*>(job.out_f32);
      out_pixel_ = job.f32_pixel_pitch * 4, out_row_ = job.f32_row_pitch * 4;
    } else {
      out_ = job.out, out_pixel_ = job.out_pixel_pitch, out_row_ = job.out_row_pitch;
      residual_ = job.residual;
      residual_pixel_ = job.residual_pixel_pitch, residual_row_ = job.residual_row_pitch;
    }
    a_ = job.a;
    if (w_ == 1) {  // a column of pixels is a row
      w_ = h_, h_ = 1;
      a_pixel_ = a_row_, out_pixel_ = out_row_, residual_pixel_ = residual_row_;
    }
    length_ = w_, lines_ = h_, period_ = w_;
    if (h_ > 1 && a_pixel_ > 0 && a_row_ % a_pixel_ == 0 && a_row_ / a_pixel_ >= w_) {
      const int64_t pitch = a_row_ / a_pixel_;
      const int64_t whole = (h_ - 1) * pitch + w_;
      if ((whole + 15) / 16 < h_ * ((w_ + 15) / 16)) {
        length_ = whole, lines_ = 1, period_ = pitch;
      }
    }
    tile_rows_ = length_ < 16 ? length_ : 16;
    tiles_in_line_ = (length_ + 15) / 16;
  }

  int64_t a_pitch() const { return a_pixel_; }
  int64_t tile_rows() const { return tile_rows_; }
  int64_t tiles() const { return lines_ * tiles_in_line_; }

  void restart() { line_ = tile_ = x_ = y_ = 0; }

  /// Tile row `i` of `block` becomes the next tile; returns where its activations begin. `element`
  /// is the size of a result.
  const uint8_t* next(Work& work, Block& block, int i, int64_t element) {
    const int64_t moved_back = tile_ == tiles_in_line_ - 1 ? tiles_in_line_ * 16 - length_ : 0;
    const int64_t skip = length_ < 16 ? 0 : moved_back;
    int64_t x = x_ - skip, y = y_;
    while (x < 0) x += period_, --y;
    const uint8_t* a = a_ + line_ * a_row_ + (tile_ * 16 - skip) * a_pixel_;

    block.pixel[i] = x;
    const int64_t offset = block.column * element;
    int64_t r = 0;
    while (r < tile_rows_) {
      int64_t run = x < w_ ? w_ - x : period_ - x;
      if (run > tile_rows_ - r) run = tile_rows_ - r;
      if (x < w_) {
        uint8_t* out = out_ + y * out_row_ + x * out_pixel_ + offset;
        for (int64_t k = 0; k < run; ++k) block.out[16 * i + r + k] = out + k * out_pixel_;
        if (residual_ != nullptr) {
          const uint8_t* residual = residual_ + y * residual_row_ + x * residual_pixel_ + offset;
          for (int64_t k = 0; k < run; ++k) {
            block.residual[16 * i + r + k] = residual + k * residual_pixel_;
          }
        }
      } else {
        discard(work, block, 16 * i + r, run);
      }
      r += run, x += run;
      if (x >= period_) x = 0, ++y;
    }
    discard(work, block, 16 * i + r, 16 - r);
    discard(work, block, 16 * i, skip);

    if (++tile_ == tiles_in_line_) {
      tile_ = 0, x_ = 0, y_ = ++line_;
    } else {
      for (x_ += 16; x_ >= period_; x_ -= period_) ++y_;
    }
    return a;
  }

 private:
  static void discard(Work& work, Block& block, int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r) {
      block.out[r] = work.trash;
      block.residual[r] = work.zeros;
    }
  }

  const uint8_t* a_;
  uint8_t* out_;
  const uint8_t* residual_ = nullptr;
  int64_t w_, h_;
  int64_t a_pixel_, a_row_, out_pixel_, out_row_;
  int64_t residual_pixel_ = 0, residual_row_ = 0;
  int64_t length_, lines_, period_;  // period: pixels of a line from one row to the next
  int64_t tile_rows_, tiles_in_line_;
  int64_t line_ = 0, tile_ = 0, x_ = 0, y_ = 0;
};

// ---- epilogues: 256 outputs a call, so that parameters stay in registers for sixteen vectors
// ------------------

/// Four vectors of 16 codes in [.., 255] become 64 bytes in order; negative ones become 0.
OCTAVO_INLINE __m512i pack_codes(__m512i v0, __m512i v1, __m512i v2, __m512i v3) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i packed =
      _mm512_packus_epi16(_mm512_packs_epi32(v0, v1), _mm512_packs_epi32(v2, v3));
  return _mm512_permutexvar_epi32(order, packed);
}

/// Stores 64 codes: 1, 2 or 4 pixels of 4, 2 or 1 vectors.
template <int NT>
OCTAVO_INLINE void store_codes(__m512i codes, uint8_t* const* out, const Block& block) {
  if (block.whole) {
    if constexpr (NT == 4) {
      _mm512_storeu_si512(out[0], codes);
    } else if constexpr (NT == 2) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[0]), _mm512_castsi512_si256(codes));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[1]), _mm512_extracti64x4_epi64(codes, 1));
    } else {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out[0]), _mm512_castsi512_si128(codes));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out[1]), _mm512_extracti32x4_epi32(codes, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out[2]), _mm512_extracti32x4_epi32(codes, 2));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out[3]), _mm512_extracti32x4_epi32(codes, 3));
    }
    return;
  }
  if constexpr (NT == 4) {
    _mm512_mask_storeu_epi8(out[0], block.columns_mask, codes);
  } else if constexpr (NT == 2) {
    const auto mask = static_cast<__mmask32>(block.columns_mask);
    _mm256_mask_storeu_epi8(out[0], mask, _mm512_castsi512_si256(codes));
    _mm256_mask_storeu_epi8(out[1], mask, _mm512_extracti64x4_epi64(codes, 1));
  } else {
    const auto mask = static_cast<__mmask16>(block.columns_mask);
    _mm_mask_storeu_epi8(out[0], mask, _mm512_castsi512_si128(codes));
    _mm_mask_storeu_epi8(out[1], mask, _mm512_extracti32x4_epi32(codes, 1));
    _mm_mask_storeu_epi8(out[2], mask, _mm512_extracti32x4_epi32(codes, 2));
    _mm_mask_storeu_epi8(out[3], mask, _mm512_extracti32x4_epi32(codes, 3));
  }
}

/// The clamp to lo happens on bytes: rounding is monotone, the pack turns negative codes and NaN
/// (INT_MIN after the conversion) into 0, and minps(hi, v) returns v where v is NaN.
template <int NT, bool kResidual>
void finish_u8(const Work& work, const Block& block, int64_t chunk) {
  constexpr int kPixels = 16 / NT;
  const int64_t i = chunk >> block.tile_shift;
  const int64_t r = (chunk - (i << block.tile_shift)) * kPixels;
  const TilePiece* piece = block.piece + i * NT;
  uint8_t* const* out = block.out + 16 * i + r;
  const uint8_t* const* residual = block.residual + 16 * i + r;
  __m512 scale[NT], offset[NT];
#pragma GCC unroll 4
  for (int j = 0; j < NT; ++j) {
    scale[j] = _mm512_load_ps(work.scale + block.column + 16 * j);
    offset[j] = _mm512_load_ps(work.offset + block.column + 16 * j);
  }
  const __m512 hi = _mm512_set1_ps(work.job->hi);
  const __m512 residual_scale = _mm512_set1_ps(work.job->residual_scale);
  const __m512i lo = _mm512_set1_epi8(static_cast<char>(work.lo));
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    __m512i code[4];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const int p = (4 * g + q) / NT, j = (4 * g + q) % NT;
      __m512 v = _mm512_cvtepi32_ps(_mm512_load_si512(piece[j].row[r + p]));
      v = _mm512_fmadd_ps(v, scale[j], offset[j]);
      if constexpr (kResidual) {
        const auto* codes = reinterpret_cast<const __m128i*>(residual[p] + 16 * j);
        const __m512 y = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(codes)));
        v = _mm512_fmadd_ps(y, residual_scale, v);
      }
      code[q] = _mm512_cvtps_epi32(_mm512_min_ps(hi, v));
    }
    const __m512i codes = pack_codes(code[0], code[1], code[2], code[3]);
    store_codes<NT>(_mm512_max_epu8(codes, lo), out + 4 * g / NT, block);
  }
}

/// Loop of the epilogues with float results: value(vector of sums, place in the grid's row, column)
/// is stored.
template <int NT, class Value>
OCTAVO_INLINE void finish_float(const Work& work, const Block& block, int64_t chunk, Value value) {
  constexpr int kPixels = 16 / NT;
  const int64_t i = chunk >> block.tile_shift;
  const int64_t r = (chunk - (i << block.tile_shift)) * kPixels;
  const TilePiece* piece = block.piece + i * NT;
  const int64_t pixels = work.tile_rows - r < kPixels ? work.tile_rows - r : kPixels;
  for (int64_t p = 0; p < pixels; ++p) {
    auto* out = reinterpret_cast<float*>(block.out[16 * i + r + p]);
#pragma GCC unroll 4
    for (int j = 0; j < NT; ++j) {
      const __m512i sum = _mm512_load_si512(piece[j].row[r + p]);
      const __m512 v = value(sum, block.pixel[i] + r + p, block.column + 16 * j);
      _mm512_mask_storeu_ps(out + 16 * j, static_cast<__mmask16>(block.columns_mask >> 16 * j), v);
    }
  }
}

/// maxps and minps return their second operand where one is NaN or both are zero: lo for a NaN, as
/// the specification.
OCTAVO_INLINE __m512 clamp(__m512 v, __m512 lo, __m512 hi) {
  return _mm512_min_ps(_mm512_max_ps(v, lo), hi);
}

OCTAVO_INLINE __m512 value_f32(const Work& work, __m512i sum, int64_t column) {
  const __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_load_ps(work.scale + column),
                                   _mm512_load_ps(work.offset + column));
  return clamp(v, _mm512_set1_ps(work.job->lo), _mm512_set1_ps(work.job->hi));
}

OCTAVO_INLINE __m512 value_rows(const Work& work, __m512i sum, int64_t x, int64_t column) {
  const __m512i zero = _mm512_set1_epi32(work.job->row_zero[x]);
  const __m512 scale = _mm512_set1_ps(work.job->row_scale[x]);
  sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, _mm512_load_si512(work.colsum + column)));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum),
                         _mm512_mul_ps(scale, _mm512_load_ps(work.scale + column)),
                         _mm512_load_ps(work.offset + column));
}

template <int NT>
void finish_f32(const Work& work, const Block& block, int64_t chunk) {
  finish_float<NT>(work, block, chunk, [&](__m512i sum, int64_t, int64_t column) {
    return value_f32(work, sum, column);
  });
}

template <int NT>
void finish_rows(const Work& work, const Block& block, int64_t chunk) {
  finish_float<NT>(work, block, chunk, [&](__m512i sum, int64_t x, int64_t column) {
    return value_rows(work, sum, x, column);
  });
}

// ---- products
// ---------------------------------------------------------------------------------------------

/// Activations and weights of one block.
struct Operands {
  const uint8_t* a[4];  // of each tile row
  const int8_t* b;      // of step 0 and the block's first column
  int64_t b_step;       // bytes from one step's tiles to the next step's
  bool prefetch;        // weights are not in L1 yet
};

/// Register C gives its old sums to `before` and begins with the start values of the new block.
template <int C>
OCTAVO_INLINE void exchange(Block& before, const int32_t* start) {
  if (before.tiles > C) tile_store<C>(before.piece[C]);
  tile_load_row<C>(start);
}

template <int C>
OCTAVO_INLINE void store_from(Block& before) {
  if constexpr (C < 4) {
    if (before.tiles > C) tile_store<C>(before.piece[C]);
    store_from<C + 1>(before);
  }
}

/// Products C and following of one K step. A tiles alternate between registers 4 and 5, B tiles
/// between 6 and 7.
template <int MT, int NT, bool kFirst, int C = 0>
OCTAVO_INLINE void step(const uint8_t* const (&a)[MT], int64_t at, int64_t pitch, const int8_t* b,
                        Block& before, const int32_t* start) {
  constexpr int i = C / NT, j = C % NT, kA = 4 + i % 2, kB = 6 + j % 2;
  if constexpr (j == 0) tile_load<kA>(a[i] + at, pitch);
  if constexpr (i == 0 || NT > 2) tile_load<kB>(b + j * int64_t{sizeof(TilePiece)}, 64);
  if constexpr (kFirst) exchange<C>(before, start + 16 * j);
  tile_multiply<C, kA, kB>();
  if constexpr (C + 1 < MT * NT) step<MT, NT, kFirst, C + 1>(a, at, pitch, b, before, start);
}

template <int MT, int NT, int C = 0>
OCTAVO_INLINE void start_all(Block& before, const int32_t* start) {
  exchange<C>(before, start + 16 * (C % NT));
  if constexpr (C + 1 < MT * NT) start_all<MT, NT, C + 1>(before, start);
}

/// Leaves a block's sums in registers 0 .. MT * NT - 1 and meanwhile finishes the block before it.
template <int MT, int NT>
void multiply(const Work& work, const Operands& operands, int64_t pitch, const int32_t* start,
              Block& before) {
  // Four steps ahead; further lines would leave L1 again, nearer ones come too late from L3.
  constexpr int64_t kLead = 4;
  const GemmJob& job = *work.job;
  const uint8_t* a[MT];
  for (int i = 0; i < MT; ++i) a[i] = operands.a[i];
  const int8_t* b = operands.b;
  const int64_t b_step = operands.b_step;
  const bool prefetch = operands.prefetch;
  const int64_t run_bytes = job.run_bytes;
  const int64_t chunks = before.chunks;
  const int64_t chunks_a_step = chunks <= work.steps ? 1 : work.steps == 1 ? 4 : 2;  // chunks <= 4
  int64_t chunk = 0;

  store_from<MT * NT>(before);
  if (work.steps == 0) start_all<MT, NT>(before, start);
  bool first = true;
  for (int64_t r = 0; r < job.runs; ++r) {
    const int64_t begin = job.run_offset[r], end = begin + run_bytes;
    for (int64_t at = begin; at < end; at += 64, b += b_step) {
      if (prefetch) {
        for (int line = 0; line < 16 * NT; ++line) {
          __builtin_prefetch(b + kLead * b_step + 64 * line, 0, 3);
        }
      }
      if (first) {
        step<MT, NT, true>(a, at, pitch, b, before, start);
        first = false;
      } else {
        step<MT, NT, false>(a, at, pitch, b, before, start);
      }
      for (int64_t k = 0; k < chunks_a_step && chunk < chunks; ++k) {
        before.finish(work, before, chunk++);
      }
    }
  }
  while (chunk < chunks) before.finish(work, before, chunk++);
}

using Multiply = void (*)(const Work&, const Operands&, int64_t, const int32_t*, Block&);

/// [columns of tiles / 2][tile rows - 1]: at most four sums in all.
constexpr Multiply kMultiply[3][4] = {
    {multiply<1, 1>, multiply<2, 1>, multiply<3, 1>, multiply<4, 1>},
    {multiply<1, 2>, multiply<2, 2>, nullptr, nullptr},
    {multiply<1, 4>, nullptr, nullptr, nullptr},
};

using Finish = void (*)(const Work&, const Block&, int64_t);

/// Copies `count` channel parameters and fills up to a panel with zeros.
template <class T>
OCTAVO_INLINE void pad(T* to, const T* from, int64_t count) {
  for (int64_t c = 0; c < kPanelColumns; ++c) to[c] = c < count ? from[c] : T{};
}

enum class Kind { kU8, kF32, kRows };

template <Kind kKind>
OCTAVO_INLINE void prepare(const GemmJob& job, Work& work) {
  work.job = &job;
  work.steps = job.runs * (job.run_bytes / 64);
  pad(work.scale, job.scale, job.n);
  pad(work.offset, job.offset, job.n);
  if constexpr (kKind == Kind::kRows) {
    pad(work.start, work.start, 0);
    pad(work.colsum, job.colsum, job.n);
  } else {
    pad(work.start, job.start, job.n);
  }
  if constexpr (kKind == Kind::kU8) {
    const float lo = job.lo < job.hi ? job.lo : job.hi;
    work.lo = static_cast<uint8_t>(_mm_cvtss_si32(_mm_set_ss(lo > 0.0f ? lo : 0.0f)));
  }
}

/// Picks the epilogue of NT columns of tiles.
template <Kind kKind, int NT>
Finish finish_of(const GemmJob& job) {
  if constexpr (kKind == Kind::kU8) {
    return job.residual != nullptr ? finish_u8<NT, true> : finish_u8<NT, false>;
  } else {
    return kKind == Kind::kF32 ? finish_f32<NT> : finish_rows<NT>;
  }
}

// ---- one or two pixels: AVX-512 VNNI over the same panels
// -------------------------------------------------

// A product of one tile row costs as much as one of sixteen, and the configuration some 50-100 ns
// more.

/// sum += four products of each dword. Assembly: with the intrinsic GCC 12 spills accumulators in
/// nested loops.
OCTAVO_INLINE void dot(__m512i& sum, __m512i a_u8, const int8_t* b_s8) {
  __asm__("vpdpbusd %2, %1, %0"
          : "+v"(sum)
          : "v"(a_u8), "m"(*reinterpret_cast<const __m512i*>(b_s8)));
}

template <Kind kKind>
OCTAVO_INLINE void store_pixel(const Work& work, __m512i sum, int64_t x, int64_t column,
                               uint8_t* out, const uint8_t* residual, __mmask16 mask) {
  const GemmJob& job = *work.job;
  if constexpr (kKind == Kind::kU8) {
    __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_load_ps(work.scale + column),
                               _mm512_load_ps(work.offset + column));
    if (residual != nullptr) {
      const __m128i r = _mm_loadu_si128(reinterpret_cast<const __m128i*>(residual + column));
      v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(r)),
                          _mm512_set1_ps(job.residual_scale), v);
    }
    v = clamp(v, _mm512_set1_ps(job.lo), _mm512_set1_ps(job.hi));
    _mm512_mask_cvtusepi32_storeu_epi8(out + column, mask, _mm512_cvtps_epi32(v));
  } else {
    const __m512 v =
        kKind == Kind::kF32 ? value_f32(work, sum, column) : value_rows(work, sum, x, column);
    _mm512_mask_storeu_ps(reinterpret_cast<float*>(out) + column, mask, v);
  }
}

/// R pixels times NT tiles of columns from `column` on; 4 * NT independent sums in all.
template <Kind kKind, int R, int NT>
__attribute__((noinline)) void multiply_pixels(const Work& work, const uint8_t* const (&a)[2],
                                               int64_t column, uint8_t* const (&out)[2],
                                               const uint8_t* const (&residual)[2]) {
  constexpr int kPhases = 4 / R;
  const GemmJob& job = *work.job;
  const int8_t* b = job.b + column * 64;
  const int64_t b_step = job.width * 64;
  __m512i sum[R][kPhases][NT];
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int phase = 0; phase < kPhases; ++phase) {
#pragma GCC unroll 4
      for (int j = 0; j < NT; ++j) {
        sum[r][phase][j] =
            phase == 0 ? _mm512_load_si512(work.start + column + 16 * j) : _mm512_setzero_si512();
      }
    }
  }
  for (int64_t run = 0; run < job.runs; ++run) {
    const int64_t begin = job.run_offset[run], end = begin + job.run_bytes;
    for (int64_t at = begin; at < end; at += 64, b += b_step) {
      for (int q = 0; q < 16; q += kPhases) {
#pragma GCC unroll 4
        for (int phase = 0; phase < kPhases; ++phase) {
          __m512i codes[R];
#pragma GCC unroll 2
          for (int r = 0; r < R; ++r) {
            int32_t quad;
            __builtin_memcpy(&quad, a[r] + at + 4 * (q + phase), 4);
            codes[r] = _mm512_set1_epi32(quad);
          }
#pragma GCC unroll 4
          for (int j = 0; j < NT; ++j) {
            const int8_t* row = b + j * 1024 + (q + phase) * 64;
            __builtin_prefetch(row + b_step, 0, 3);
#pragma GCC unroll 2
            for (int r = 0; r < R; ++r) dot(sum[r][phase][j], codes[r], row);
          }
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < NT; ++j) {
      __m512i total = sum[r][0][j];
#pragma GCC unroll 4
      for (int phase = 1; phase < kPhases; ++phase) {
        total = _mm512_add_epi32(total, sum[r][phase][j]);
      }
      const int64_t c = column + 16 * j, left = job.n - c;
      if (left <= 0) continue;
      const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
      store_pixel<kKind>(work, total, r, c, out[r], residual[r], mask);
    }
  }
}

template <Kind kKind, int R>
void multiply_few(const GemmJob& job) {
  Work work;
  prepare<kKind>(job, work);
  // The second pixel is the next of the row or of the column.
  const int64_t x = job.w == 2, y = job.h == 2;
  const uint8_t* const a[2] = {job.a, job.a + x * job.a_pixel_pitch + y * job.a_row_pitch};
  uint8_t* out[2];
  const uint8_t* residual[2] = {nullptr, nullptr};
  if constexpr (kKind == Kind::kU8) {
    out[0] = job.out;
    out[1] = job.out + x * job.out_pixel_pitch + y * job.out_row_pitch;
    if (job.residual != nullptr) {
      residual[0] = job.residual;
      residual[1] = job.residual + x * job.residual_pixel_pitch + y * job.residual_row_pitch;
    }
  } else {
    out[0] = reinterpret_cast<uint8_t*>(job.out_f32);
    out[1] =
        reinterpret_cast<uint8_t*>(job.out_f32 + x * job.f32_pixel_pitch + y * job.f32_row_pitch);
  }
  if (job.width == 64) {
    multiply_pixels<kKind, R, 4>(work, a, 0, out, residual);
    return;
  }
  for (int64_t column = 0; column < job.width; column += 16) {
    multiply_pixels<kKind, R, 1>(work, a, column, out, residual);
  }
}

// ---- a job
// -------------------------------------------------------------------------------------------------

/// Columns of tiles and the most tile rows of the blocks of a sweep.
struct Shape {
  int nt, mt;
};

/// Shapes by measurement on an Intel server core: 1x4 where K is short (whole rows of 64 are stored
/// and the weights stay in L1), 4x1 where few pixels meet weights that come from L3 (each is loaded
/// once), else 2x2.
Shape choose(const Work& work, int64_t tiles, int64_t columns_left) {
  constexpr int64_t kShort = 4, kDeep = 24;  // steps
  if (columns_left >= 64 && (work.steps <= kShort || tiles == 1)) return {4, 1};
  if (columns_left < 32) return {1, 4};
  if (tiles > 2 && tiles <= 4 && work.steps >= kDeep) return {1, 4};
  return {2, 2};
}

template <Kind kKind>
void multiply_job(const GemmJob& job) {
  if (job.h <= 0 || job.w <= 0) return;
  if (job.h * job.w == 1) return multiply_few<kKind, 1>(job);
  if (job.h * job.w == 2) return multiply_few<kKind, 2>(job);

  constexpr bool kFloat = kKind != Kind::kU8;
  constexpr int64_t kInL1 = 8;  // steps whose weights are too few for a prefetch to matter
  Walk walk(job, kFloat);
  Work work;
  prepare<kKind>(job, work);
  __builtin_memset(work.zeros, 0, sizeof work.zeros);
  work.tile_rows = walk.tile_rows();
  const int64_t pitch = walk.a_pitch();

  TileConfig config{};
  config.palette = 1;
  for (int t = 0; t < 8; ++t) {
    config.bytes[t] = 64;
    config.rows[t] = static_cast<uint8_t>(t < 6 ? work.tile_rows : 16);
  }
  tile_configure(config);

  Block blocks[2];
  // Pixels that a smaller tile leaves out are converted too, though never stored.
  if (work.tile_rows < 16) {
    for (Block& block : blocks) __builtin_memset(block.piece, 0, sizeof block.piece);
  }
  int current = 0;
  for (int64_t column = 0; column < job.n;) {
    const Shape shape = choose(work, walk.tiles(), job.width - column);
    const int nt_index = shape.nt / 2;
    const int64_t columns = job.n - column < 16 * shape.nt ? job.n - column : 16 * shape.nt;
    const int chunk_pixels = 16 / shape.nt;
    const int64_t tile_chunks = (work.tile_rows + chunk_pixels - 1) / chunk_pixels;
    const Finish finish = shape.nt == 1   ? finish_of<kKind, 1>(job)
                          : shape.nt == 2 ? finish_of<kKind, 2>(job)
                                          : finish_of<kKind, 4>(job);
    Operands operands;
    operands.b = job.b + column * 64;
    operands.b_step = job.width * 64;
    operands.prefetch = work.steps > kInL1;  // the first block of a sweep
    walk.restart();
    for (int64_t left = walk.tiles(); left > 0;) {
      const int mt = left < shape.mt ? static_cast<int>(left) : shape.mt;
      Block& block = blocks[current];
      Block& before = blocks[1 - current];
      block.column = column;
      for (int i = 0; i < mt; ++i) {
        operands.a[i] = walk.next(work, block, i, kFloat ? sizeof(float) : 1);
      }
      kMultiply[nt_index][mt - 1](work, operands, pitch, work.start + column, before);
      block.tiles = mt * shape.nt;
      block.chunks = mt * tile_chunks;
      block.finish = finish;
      block.tile_shift = tile_chunks == 1 ? 0 : tile_chunks == 2 ? 1 : 2;
      block.columns_mask = ~uint64_t{0} >> (64 - columns);
      block.whole = columns == 16 * shape.nt;
      current = 1 - current;
      operands.prefetch = false;
      left -= mt;
    }
    column += 16 * shape.nt;
  }
  Block& last = blocks[1 - current];
  store_from<0>(last);
  for (int64_t chunk = 0; chunk < last.chunks; ++chunk) last.finish(work, last, chunk);
  tile_release();
}

void gemm_u8s8_u8(const GemmJob& job) { multiply_job<Kind::kU8>(job); }
void gemm_u8s8_f32(const GemmJob& job) { multiply_job<Kind::kF32>(job); }
void gemm_u8s8_rows(const GemmJob& job) { multiply_job<Kind::kRows>(job); }

}  // namespace

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kAmx;
  table.gemm_u8s8_u8 = gemm_u8s8_u8;
  table.gemm_u8s8_f32 = gemm_u8s8_f32;
  table.gemm_u8s8_rows = gemm_u8s8_rows;
}

}  // namespace octavo::OCTAVO_AMX

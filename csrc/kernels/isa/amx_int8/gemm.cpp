// Dense products by AMX tiles: 16 pixels x 16 columns a tile, 64 of K a step. Filled into the row
// amx_int8 by table.cpp; called by product_dense.cpp. tile.h wraps the instructions. A block is the
// pixels x columns whose sums are in tile registers at one time; the AVX-512 epilogue of one block
// (finish.h) runs between the products of the next, which hide it.
#include "gemm.h"

#include "few_pixels.h"
#include "finish.h"
#include "join.h"
#include "walk.h"

namespace octavo::OCTAVO_AMX {
namespace {

// ---- products ---------------------------------------------------------------------------------

/// The results that remain to be written for a block whose shape is known at compile time, `parts`
/// at a time. Also prefetches the lines of the next block's results.
template <class T>
class Rest {
 public:
  OCTAVO_INLINE Rest(const Finisher<T>& finisher, const Work& work, const Block& block,
                     const TilePiece* pieces, int64_t parts, const Block& next)
      : finisher_(finisher),
        work_(work),
        block_(block),
        next_(next),
        pieces_(pieces),
        quota_(parts) {}

  OCTAVO_INLINE void some() {
    for (int64_t k = 0; k < quota_ && i_ < block_.mt; ++k) one();
  }
  OCTAVO_INLINE void all() {
    while (i_ < block_.mt) one();
  }

 private:
  OCTAVO_INLINE void one() {
    finisher_.part(block_, pieces_, i_, r_);
    finisher_.ask(next_, i_, r_);
    r_ += T::kPixels;
    if (r_ >= work_.tile_rows) r_ = 0, ++i_;
  }

  const Finisher<T>& finisher_;
  const Work& work_;
  const Block& block_;
  const Block& next_;
  const TilePiece* pieces_;
  int64_t quota_, i_ = 0, r_ = 0;
};

/// The same for a block of another sweep, if there is one: one row of tiles at a time.
class OtherRest {
 public:
  OtherRest(const Work& work, const Block& block, const TilePiece* pieces)
      : work_(work), block_(block), pieces_(pieces) {}
  void some() {
    if (i_ < block_.mt) block_.finish(work_, block_, pieces_, i_++);
  }
  void all() {
    while (i_ < block_.mt) some();
  }

 private:
  const Work& work_;
  const Block& block_;
  const TilePiece* pieces_;
  int64_t i_ = 0;
};

constexpr int64_t kTileBytes = sizeof(TilePiece);

/// Activations and weights of one block.
template <Kind kKind, int MT>
struct Operands {
  const uint8_t* a[MT];  // of each tile row
  const int8_t* b;       // of step 0 and the block's first column
  int64_t b_tile;        // bytes from one column of tiles to the next
  int64_t level_pitch;   // kLevelRows: from one row of a tile to the next
  int64_t pitch;         // of pixels
  bool prefetch;         // whether to prefetch the weights, which are not in L1
  const int8_t* ahead;   // the next sweep's weights, prefetched meanwhile:
  int64_t ahead_lines;   // so many lines a step

  OCTAVO_INLINE int64_t b_pitch() const { return kKind == Kind::kLevelRows ? level_pitch : 64; }
};

/// Stores the old sums of register C in its piece and sets the register to zero. Start values are
/// added later: loading them here would delay the products.
template <int C, int kBefore>
OCTAVO_INLINE void exchange(int before, TilePiece* pieces) {
  if (kBefore < 0 ? before > C : kBefore > C) tile_store<C>(pieces[C]);
  tile_zero<C>();
}

/// Stores the sums of registers C and following.
template <int C>
OCTAVO_INLINE void store_from(int before, TilePiece* pieces) {
  if constexpr (C < 4) {
    if (before > C) tile_store<C>(pieces[C]);
    store_from<C + 1>(before, pieces);
  }
}

/// Products from number C on of one K step. A tiles alternate between registers 4 and 5, B tiles
/// between 6 and 7. kBefore: how many tiles hold sums of the block before; -1: `before` says it.
template <int MT, int NT, int kBefore, bool kFirst, int C = 0, class O, class R>
OCTAVO_INLINE void step(const O& operands, int64_t at, const int8_t* b, int before,
                        TilePiece* pieces, R& rest) {
  constexpr int i = C / NT, j = C % NT, kA = 4 + i % 2, kB = 6 + j % 2;
  if constexpr (j == 0) tile_load<kA>(operands.a[i] + at, operands.pitch);
  if constexpr (i == 0 || NT > 2) tile_load<kB>(b + j * operands.b_tile, operands.b_pitch());
  if constexpr (kFirst) exchange<C, kBefore>(before, pieces);
  tile_multiply<C, kA, kB>();
  if constexpr (C + 1 < MT * NT) {
    if constexpr (C % 2 == 1 && !kFirst) rest.some();
    step<MT, NT, kBefore, kFirst, C + 1>(operands, at, b, before, pieces, rest);
  }
}

template <int kTiles, int kBefore, int C = 0>
OCTAVO_INLINE void start_all(int before, TilePiece* pieces) {
  exchange<C, kBefore>(before, pieces);
  if constexpr (C + 1 < kTiles) start_all<kTiles, kBefore, C + 1>(before, pieces);
}

/// Leaves a block's sums in registers 0 .. MT * NT - 1, stores those of the block before in pieces,
/// and meanwhile writes the remaining results of an older block.
template <int MT, int NT, int kBefore, class O, class R>
OCTAVO_INLINE void multiply(const Work& work, const O& operands, int before, TilePiece* pieces,
                            R rest) {
  // Four steps ahead: lines further ahead leave L1 again, nearer ones arrive too late from L3.
  constexpr int64_t kLead = 4;
  const GemmJob& job = *work.job;
  const int64_t no_offset = 0;
  const int64_t* run_offset = job.joined_rows > 0 ? &no_offset : job.run_offset;
  const int64_t runs = job.joined_rows > 0 ? 1 : job.runs;
  const int64_t run_bytes = job.joined_rows > 0 ? job.depth : job.run_bytes;
  if constexpr (kBefore < 0) store_from<MT * NT>(before, pieces);
  if (work.steps == 0) {
    start_all<MT * NT, kBefore>(before, pieces);
    rest.all();
    return;
  }
  const int8_t* b = operands.b;
  const int64_t b_step = 16 * operands.b_pitch();
  const int8_t* ahead = operands.ahead;
  const auto prefetch = [&](const int8_t* from) __attribute__((always_inline)) {
    for (int64_t line = 0; line < operands.ahead_lines; ++line, ahead += 64) {
      __builtin_prefetch(ahead, 0, 2);
    }
    if (!operands.prefetch) return;
    for (int j = 0; j < NT; ++j) {
      for (int line = 0; line < 16; ++line) {
        __builtin_prefetch(from + j * operands.b_tile + kLead * kTileBytes + 64 * line, 0, 3);
      }
    }
  };
  int64_t at = run_offset[0], end = at + run_bytes;
  prefetch(b);
  step<MT, NT, kBefore, true>(operands, at, b, before, pieces, rest);
  for (int64_t r = 1;; ++r) {
    for (at += 64, b += b_step; at < end; at += 64, b += b_step) {
      prefetch(b);
      step<MT, NT, kBefore, false>(operands, at, b, before, pieces, rest);
      rest.some();
    }
    if (r == runs) break;
    at = run_offset[r] - 64, end = at + 64 + run_bytes;
    b -= b_step;
  }
  rest.all();
}

// ---- a job ------------------------------------------------------------------------------------

/// The three latest blocks of a job, over all its sweeps. While block n is multiplied, the sums of
/// block n - 1 are stored in pieces, and those of block n - 2 become results: a load of what a tile
/// has just stored would wait for all products before it, and delay all that follows.
struct Pipeline {
  Block blocks[3];
  TilePiece pieces[2][4];
  int64_t n = 0;
  JoinedPixels joined;

  Block& block(int64_t i) { return blocks[(i + 3) % 3]; }
  TilePiece* pieces_of(int64_t i) { return pieces[i & 1]; }
};

template <class T>
void finish_row(const Work& work, const Block& block, const TilePiece* pieces, int64_t i) {
  const Finisher<T> finisher(work, block.column);
  for (int64_t r = 0; r < work.tile_rows; r += T::kPixels) finisher.part(block, pieces, i, r);
}

/// What the `count` blocks of a sweep prefetch: each a share of the next sweep's weights; the first
/// block also its own, if they have not been prefetched.
template <int NT, Kind kKind, int MT>
void plan_asking(const Work& work, int64_t column, int64_t columns, int64_t count,
                 Operands<kKind, MT>& operands) {
  constexpr int64_t kInL1 = 8;        // steps whose weights L1 holds
  constexpr int64_t kFewBlocks = 16;  // take less time than to load weights from L3
  const bool from_memory = kKind != Kind::kLevelRows && work.steps > kInL1;
  const bool asks = from_memory && count > 1 && count <= kFewBlocks;
  operands.ahead_lines = asks ? (16 * NT + count - 1) / count : 0;
  operands.ahead = operands.b + columns * work.job->depth;
  operands.prefetch = from_memory && !(asks && column > 0);
}

/// `count` blocks of MT x NT tiles, from the walk's next tile on, over the columns from `column`.
template <class T, int MT>
__attribute__((noinline)) void sweep(Work& work, Walk& walk, Pipeline& pipeline, int64_t column,
                                     int64_t count) {
  constexpr int NT = T::NT;
  constexpr int64_t kElement = T::kKind == Kind::kU8 ? 1 : sizeof(float);
  const GemmJob& job = *work.job;
  const int64_t left = job.n - column, columns = left < 16 * NT ? left : 16 * NT;
  Operands<T::kKind, MT> operands;
  constexpr bool kLevels = T::kKind == Kind::kLevelRows;
  operands.b = job.b + column * (kLevels ? 4 : job.depth);
  operands.b_tile = kLevels ? 64 : 16 * job.depth;
  operands.level_pitch = 4 * job.width;
  operands.pitch = job.joined_rows > 0 ? job.depth : walk.a_pitch();
  plan_asking<NT>(work, column, columns, count, operands);
  const Finisher<T> finisher(work, column);
  const int64_t parts = MT * ((work.tile_rows + T::kPixels - 1) / T::kPixels);
  const int64_t parts_a_slot =
      work.steps > 1 ? (parts + 2 * work.steps - 3) / (2 * work.steps - 2) : 0;
  const uint8_t* joined[MT] = {};
  int64_t tile = walk.tile();
  const auto join_block = [&] {
    for (int i = 0; i < MT; ++i) {
      joined[i] =
          pipeline.joined.copy(job, walk.a_pitch(), walk.activations(tile++), work.tile_rows);
    }
  };
  if (job.joined_rows > 0) join_block();
  for (int64_t k = 0; k < count; ++k) {
    const int64_t n = pipeline.n++;
    Block& block = pipeline.block(n);
    const Block &before = pipeline.block(n - 1), &older = pipeline.block(n - 2);
    TilePiece* const pieces = pipeline.pieces_of(n - 1);
    const TilePiece* const older_pieces = pipeline.pieces_of(n - 2);
    block.column = column;
    block.columns_mask = ~uint64_t{0} >> (64 - columns);
    block.mt = MT, block.nt = NT;
    block.finish = finish_row<T>;
    for (int i = 0; i < MT; ++i) {
      operands.a[i] = walk.next<T::kLinear>(work, block, i, kElement);
      if (job.joined_rows > 0) operands.a[i] = joined[i];
    }
    if (job.joined_rows > 0 && k + 1 < count) join_block();
    if (k < 2) {  // the older block may be another sweep's
      if (before.mt * before.nt == MT * NT && older.mt == MT && older.finish == &finish_row<T>) {
        const Finisher<T> other(work, older.column);
        multiply<MT, NT, MT * NT>(work, operands, MT * NT, pieces,
                                  Rest<T>(other, work, older, older_pieces, parts_a_slot, before));
      } else {
        multiply<MT, NT, -1>(work, operands, before.mt * before.nt, pieces,
                             OtherRest(work, older, older_pieces));
      }
    } else {
      multiply<MT, NT, MT * NT>(work, operands, MT * NT, pieces,
                                Rest<T>(finisher, work, older, older_pieces, parts_a_slot, before));
    }
    operands.prefetch = false;
    operands.ahead += operands.ahead_lines * 64 * work.steps;
  }
}

/// Columns of tiles and the most tile rows of the blocks of a sweep.
struct Shape {
  int nt, mt;
};

/// Measured on an Intel server core (tile columns x tile rows):
///
///   4 x 1  short K, where whole lines of 64 codes are stored and weights stay in L1; one tile row
///   1 x 4  few pixels with weights from L3, each of which is read once, in the order of memory
///   2 x 2  all other jobs
Shape choose(const Work& work, int64_t tiles, int64_t columns_left, bool from_memory) {
  constexpr int64_t kShort = 4;  // steps
  if (columns_left < 32 || (from_memory && tiles > 1 && tiles <= 4 && work.steps >= kDeep))
    return {1, 4};
  if (columns_left >= 64 && (work.steps <= kShort || tiles == 1)) return {4, 1};
  return {2, 2};
}

template <class T>
void sweep_column(Work& work, Walk& walk, Pipeline& pipeline, int64_t column) {
  const int64_t tiles = walk.tiles();
  walk.restart();
  if constexpr (T::NT == 4) {
    sweep<T, 1>(work, walk, pipeline, column, tiles);
  } else {
    constexpr int MT = 4 / T::NT;
    if (tiles >= MT) sweep<T, MT>(work, walk, pipeline, column, tiles / MT);
    const int64_t rest = tiles % MT;
    if (rest == 1) sweep<T, 1>(work, walk, pipeline, column, 1);
    if constexpr (MT == 4) {
      if (rest == 2) sweep<T, 2>(work, walk, pipeline, column, 1);
      if (rest == 3) sweep<T, 3>(work, walk, pipeline, column, 1);
    }
  }
}

template <Kind kKind, int NT, bool kResidual, bool kLinear>
void choose_plain(Work& work, Walk& walk, Pipeline& pipeline, int64_t column) {
  const bool whole = work.job->n - column >= 16 * NT;
  if (whole && (kKind != Kind::kU8 || work.bounded)) {
    sweep_column<Target<kKind, NT, kResidual, kLinear, true>>(work, walk, pipeline, column);
  } else {
    sweep_column<Target<kKind, NT, kResidual, kLinear, false>>(work, walk, pipeline, column);
  }
}

template <Kind kKind, int NT>
void choose_target(Work& work, Walk& walk, Pipeline& pipeline, int64_t column) {
  const bool residual = kKind == Kind::kU8 && work.job->residual != nullptr;
  if (walk.linear()) {
    residual ? choose_plain<kKind, NT, kKind == Kind::kU8, true>(work, walk, pipeline, column)
             : choose_plain<kKind, NT, false, true>(work, walk, pipeline, column);
  } else {
    residual ? choose_plain<kKind, NT, kKind == Kind::kU8, false>(work, walk, pipeline, column)
             : choose_plain<kKind, NT, false, false>(work, walk, pipeline, column);
  }
}

template <Kind kKind>
void multiply_job(const GemmJob& job) {
  if (job.h <= 0 || job.w <= 0) return;
  if (kKind != Kind::kLevelRows && job.h * job.w <= 2) {
    JoinedPixels joined;
    const int64_t no_offset = 0;
    GemmJob few = job;
    if (job.joined_rows > 0) {
      const int64_t pitch = job.w == 2 ? job.a_pixel_pitch : job.a_row_pitch;
      few.a = joined.copy(job, pitch, job.a, job.h * job.w);
      few.a_pixel_pitch = few.a_row_pitch = few.run_bytes = job.depth;
      few.run_offset = &no_offset;
      few.runs = 1;
    }
    return job.h * job.w == 1 ? multiply_few<kKind, 1>(few) : multiply_few<kKind, 2>(few);
  }

  Walk walk(job, kKind != Kind::kU8);
  Work work;
  prepare<kKind>(job, work);
  __builtin_memset(work.zeros, 0, sizeof work.zeros);
  work.tile_rows = walk.tile_rows();
  work.out_pitch = walk.out_pitch(), work.residual_pitch = walk.residual_pitch();

  TileConfig config{};
  config.palette = 1;
  for (int t = 0; t < 8; ++t) {
    config.bytes[t] = 64;
    config.rows[t] = static_cast<uint8_t>(t < 6 ? work.tile_rows : 16);
  }
  tile_configure(config);

  Pipeline pipeline;
  // If tiles have fewer than sixteen rows, the last part converts rows that were never written;
  // their results are not stored.
  if (work.tile_rows < 16) __builtin_memset(pipeline.pieces, 0, sizeof pipeline.pieces);
  for (int64_t column = 0; column < job.n;) {
    const Shape shape = choose(work, walk.tiles(), job.width - column, kKind != Kind::kLevelRows);
    if (shape.nt == 1) choose_target<kKind, 1>(work, walk, pipeline, column);
    if (shape.nt == 2) choose_target<kKind, 2>(work, walk, pipeline, column);
    if (shape.nt == 4) choose_target<kKind, 4>(work, walk, pipeline, column);
    column += 16 * shape.nt;
  }
  const int64_t last = pipeline.n - 1;
  store_from<0>(pipeline.block(last).mt * pipeline.block(last).nt, pipeline.pieces_of(last));
  tile_release();
  for (int64_t n = last - 1; n <= last; ++n) {
    OtherRest(work, pipeline.block(n), pipeline.pieces_of(n)).all();
  }
  walk.mend_gaps(job);
}

void gemm_u8s8_u8(const GemmJob& job) { multiply_job<Kind::kU8>(job); }
void gemm_u8s8_f32(const GemmJob& job) { multiply_job<Kind::kF32>(job); }
void gemm_u8s8_rows(const GemmJob& job) { multiply_job<Kind::kRows>(job); }

}  // namespace

void gemm_level_rows(const GemmJob& job) { multiply_job<Kind::kLevelRows>(job); }

void fill_gemm(GemmTable& table) {
  table.layout = PanelLayout::kAmx;
  table.joins_panels = true;
  table.chunk_bytes = int64_t{13} << 18;
  table.gemm_u8s8_u8 = gemm_u8s8_u8;
  table.gemm_u8s8_f32 = gemm_u8s8_f32;
  table.gemm_u8s8_rows = gemm_u8s8_rows;
}

}  // namespace octavo::OCTAVO_AMX

// Products with unpacked low-bit levels by AMX tiles: 16 rows x 64 columns, a group's integer sums
// in four tile registers, float sums in L1. Filled into the row amx_int8 by table.cpp; called by
// kernels/lowbit.cpp. Few rows go through avx512_vnni's packed products.
#include "work.h"

namespace octavo::OCTAVO_AMX {
namespace {

/// Rows of a tile and inputs of a group beyond its whole steps of 64.
struct Shape {
  int64_t rows, rest;
  bool operator==(const Shape&) const = default;
};

/// Registers 0 .. 3 hold sums, 4 and 6 a whole step of activations and levels, 5 and 7 the rest.
void configure(const Shape& shape) {
  TileConfig config{};
  config.palette = 1;
  const auto set = [&](int tile, int64_t rows, int64_t bytes) {
    config.rows[tile] = static_cast<uint8_t>(rows);
    config.bytes[tile] = static_cast<uint16_t>(bytes);
  };
  for (int tile = 0; tile < 4; ++tile) set(tile, shape.rows, 64);
  set(4, shape.rows, 64);
  set(6, 16, 64);
  if (shape.rest > 0) {
    set(5, shape.rows, shape.rest);
    set(7, shape.rest / 4, 64);
  }
  tile_configure(config);
}

/// What a group's words say of T tiles of columns, and how its sums become floats.
template <int T, bool kWide>
class GroupWords {
 public:
  GroupWords(const LowbitPanel& panel, const uint8_t* words) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j) {
      word_[j] = _mm512_loadu_si512(words + 64 * j);
      scale_[j] = _mm512_castsi512_ps(kWide ? word_[j] : _mm512_and_si512(word_[j], upper));
      if constexpr (kWide) word_[j] = _mm512_loadu_si512(words + 4 * panel.width + 64 * j);
    }
  }

  /// Adds a row of sums to the row's float sums: f = fmaf(float(sum - zero * levels), scale, f).
  OCTAVO_INLINE void add_row(const TilePiece* pieces, int64_t row, int32_t zero, float* f) const {
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j) {
      __m512i sum = _mm512_load_si512(pieces[j].row[row]);
      if constexpr (kWide) {
        sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(word_[j], _mm512_set1_epi32(zero)));
      } else {
        // The sum of levels is a word's lower half; zero times the upper half, the scale, is 0.
        sum = _mm512_dpwssd_epi32(sum, word_[j], _mm512_set1_epi32(-zero & 0xffff));
      }
      const __m512 v = _mm512_load_ps(f + 16 * j);
      _mm512_store_ps(f + 16 * j, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale_[j], v));
    }
  }

 private:
  __m512i word_[T];
  __m512 scale_[T];
};

/// Sixteen rows times the groups of a panel of T tiles of columns. While a group is multiplied, the
/// sums of the one before go to pieces and those of the one before that are added to float sums:
/// what a tile has just stored cannot be loaded soon.
template <int T, bool kWide>
class Rows {
 public:
  Rows(const GroupJob& job, int64_t row, int64_t rows, float* f)
      : job_(job), panel_(job.panel), zero_(job.row_zero + row), rows_(rows), f_(f) {}

  void run(const uint8_t* a, Shape* configured) {
    const int64_t step = panel_.width * 4;
    for (int64_t g = 0; g < panel_.count; ++g) {
      const int64_t codes = g + 1 < panel_.count ? panel_.group_codes : panel_.last_codes;
      if (const Shape shape{rows_, codes % 64}; !(shape == *configured)) {
        drain(g);
        configure(shape);
        *configured = shape;
      }
      if (job_.unpack != nullptr && g == 0) unpack(0);
      multiply(g, a, codes, step);
      a += codes;
    }
    drain(panel_.count);
  }

 private:
  void unpack(int64_t g) {
    LowbitPanel one = panel_;
    one.groups += g * panel_.group_step;
    one.count = 1;
    one.last_codes = g + 1 < panel_.count ? panel_.group_codes : panel_.last_codes;
    job_.unpack(one, levels_[g & 1]);
  }

  /// Adds what is left of group `g`, some rows at a time.
  class Rest {
   public:
    OCTAVO_INLINE Rest(const Rows& rows, int64_t g, int64_t quota)
        : rows_(rows),
          words_(rows.panel_, rows.panel_.groups + (g < 0 ? 0 : g) * rows.panel_.group_step),
          pieces_(rows.pieces_[g & 1]),
          end_(g < rows.added_ ? 0 : rows.rows_),
          quota_(quota) {}
    OCTAVO_INLINE void some() {
      for (int64_t k = 0; k < quota_ && row_ < end_; ++k) one();
    }
    OCTAVO_INLINE void all() {
      while (row_ < end_) one();
    }

   private:
    OCTAVO_INLINE void one() {
      words_.add_row(pieces_, row_, rows_.zero_[row_], rows_.f_ + row_ * kLowbitColumns);
      ++row_;
    }
    const Rows& rows_;
    GroupWords<T, kWide> words_;
    const TilePiece* pieces_;
    int64_t row_ = 0, end_, quota_;
  };

  /// Products of tile columns J and following; kFirst: registers give up the sums of group g - 1.
  template <int A, int B, bool kFirst, int J = 0>
  OCTAVO_INLINE void columns(int64_t g, const int8_t* b, int64_t step, Rest& rest) {
    if constexpr (J < T) {
      tile_load<B>(b + 64 * J, step);
      if constexpr (kFirst) {
        if (g > stored_) tile_store<J>(pieces_[(g - 1) & 1][J]);
        tile_zero<J>();
      }
      tile_multiply<J, A, B>();
      rest.some();
      columns<A, B, kFirst, J + 1>(g, b, step, rest);
    }
  }

  OCTAVO_INLINE void multiply(int64_t g, const uint8_t* a, int64_t codes, int64_t step) {
    if (job_.unpack != nullptr && g + 1 < panel_.count) unpack(g + 1);
    const int64_t slots = T * ((codes + 63) / 64);
    Rest rest(*this, g - 2, (rows_ + slots - 1) / slots);
    const int8_t* b = job_.unpack == nullptr ? job_.b + g * job_.b_step : levels_[g & 1];
    int64_t k = 0;
    if (codes >= 64) {
      tile_load<4>(a, job_.pitch);
      columns<4, 6, true>(g, b, step, rest);
      for (k = 64, b += 16 * step; k + 64 <= codes; k += 64, b += 16 * step) {
        tile_load<4>(a + k, job_.pitch);
        columns<4, 6, false>(g, b, step, rest);
      }
    }
    if (k < codes) {
      tile_load<5>(a + k, job_.pitch);
      if (k == 0) {
        columns<5, 7, true>(g, b, step, rest);
      } else {
        columns<5, 7, false>(g, b, step, rest);
      }
    }
    rest.all();
    stored_ = g;
    if (g > 1 && added_ < g - 1) added_ = g - 1;
  }

  template <int J = 0>
  OCTAVO_INLINE void store(TilePiece* pieces) {
    if constexpr (J < T) {
      tile_store<J>(pieces[J]);
      store<J + 1>(pieces);
    }
  }

  /// Groups before g become float sums; the registers are free then.
  void drain(int64_t g) {
    if (g == 0) return;
    store(pieces_[(g - 1) & 1]);
    for (; added_ < g; ++added_) Rest(*this, added_, 0).all();
    stored_ = g;
  }

  const GroupJob& job_;
  const LowbitPanel& panel_;
  const int32_t* zero_;
  int64_t rows_;
  float* f_;
  int64_t stored_ = 0;  // groups before it are in pieces or added
  int64_t added_ = 0;   // groups before it are in float sums
  TilePiece pieces_[2][4];
  alignas(64) int8_t levels_[2][kFusedGroup * kLowbitColumns];
};

void finish_rows(const GroupJob& job, int64_t row, int64_t rows, const float* f) {
  for (int64_t column = 0; column < job.panel.n; column += 16) {
    const int64_t left = job.panel.n - column;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
    const __m512 bias = _mm512_maskz_loadu_ps(mask, job.bias + column);
    for (int64_t m = row; m < row + rows; ++m) {
      const __m512 sum = _mm512_load_ps(f + (m - row) * kLowbitColumns + column);
      const __m512 scale = _mm512_set1_ps(job.row_scale[m]);
      _mm512_mask_storeu_ps(job.y + m * job.ldy + column, mask, _mm512_fmadd_ps(sum, scale, bias));
    }
  }
}

template <int T>
void gemm_groups(const GroupJob& job) {
  alignas(64) float own[16 * kLowbitColumns];
  Shape configured{0, 0};
  for (int64_t row = 0; row < job.rows; row += 16) {
    const int64_t rows = job.rows - row < 16 ? job.rows - row : 16;
    // Sums that come from another chunk or go to the next one stay where they are.
    float* f = job.first && job.last ? own : job.acc + row * kLowbitColumns;
    if (job.first) {
      __builtin_memset(f, 0, static_cast<size_t>(rows * kLowbitColumns) * sizeof(float));
    }
    const uint8_t* a = job.a + row * job.pitch;
    if (job.panel.wide) {
      Rows<T, true>(job, row, rows, f).run(a, &configured);
    } else {
      Rows<T, false>(job, row, rows, f).run(a, &configured);
    }
    if (job.last) finish_rows(job, row, rows, f);
  }
  tile_release();
}

void gemm_u8s8_groups(const GroupJob& job) {
  switch (job.panel.width) {
    case 16:
      return gemm_groups<1>(job);
    case 32:
      return gemm_groups<2>(job);
    case 48:
      return gemm_groups<3>(job);
    default:
      return gemm_groups<4>(job);
  }
}

}  // namespace

void fill_lowbit(LowbitTable& table) {
  table.packed_rows = table.packed_rows_levels = 4;
  table.chunk_bytes = 288 << 10;
  table.fused_rows = 16;
  table.gemm_u8s8_groups = gemm_u8s8_groups;
}

}  // namespace octavo::OCTAVO_AMX

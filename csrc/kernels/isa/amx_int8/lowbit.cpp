// Products with unpacked low-bit levels by AMX tiles: 16 rows x 64 columns, a group's integer sums
// in four tile registers, float sums in L1. Filled into the row amx_int8 by table.cpp; called by
// kernels/lowbit.cpp. Few rows go through avx512_vnni's packed products.
#include <immintrin.h>

#include "../../kernel_table.h"
#include "tile.h"

namespace octavo::OCTAVO_AMX {
namespace {

#define OCTAVO_INLINE inline __attribute__((always_inline))

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

/// Products of tile column J and those after it.
template <int A, int B, int J = 0>
OCTAVO_INLINE void multiply_columns(int64_t tiles, const int8_t* b, int64_t step) {
  if constexpr (J < 4) {
    if (J < tiles) {
      tile_load<B>(b + 64 * J, step);
      tile_multiply<J, A, B>();
    }
    multiply_columns<A, B, J + 1>(tiles, b, step);
  }
}

template <int J = 0>
OCTAVO_INLINE void store_columns(int64_t tiles, TilePiece* pieces) {
  if constexpr (J < 4) {
    if (J < tiles) tile_store<J>(pieces[J]);
    store_columns<J + 1>(tiles, pieces);
  }
}

template <int J = 0>
OCTAVO_INLINE void clear() {
  if constexpr (J < 4) {
    tile_zero<J>();
    clear<J + 1>();
  }
}

/// Adds a group's sums of 16 columns to the float sums of `rows` rows.
void add_group(const LowbitPanel& panel, const uint8_t* words, int64_t column,
               const TilePiece& piece, const int32_t* row_zero, int64_t rows, float* f) {
  const __m512i word = _mm512_loadu_si512(words + 4 * column);
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  const __m512 scale = _mm512_castsi512_ps(panel.wide ? word : _mm512_and_si512(word, upper));
  const __m512i level_sums = panel.wide ? _mm512_loadu_si512(words + 4 * (panel.width + column))
                                        : _mm512_srai_epi32(_mm512_slli_epi32(word, 16), 16);
  for (int64_t m = 0; m < rows; ++m) {
    const __m512i by = _mm512_mullo_epi32(level_sums, _mm512_set1_epi32(row_zero[m]));
    const __m512i sum = _mm512_sub_epi32(_mm512_load_si512(piece.row[m]), by);
    float* at = f + m * kLowbitColumns + column;
    _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, _mm512_load_ps(at)));
  }
}

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

void gemm_u8s8_groups(const GroupJob& job) {
  const LowbitPanel& panel = job.panel;
  const int64_t tiles = panel.width / 16, step = panel.width * 4;
  TilePiece pieces[4];
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
    for (int64_t g = 0; g < panel.count; ++g) {
      const int64_t codes = g + 1 < panel.count ? panel.group_codes : panel.last_codes;
      if (const Shape shape{rows, codes % 64}; !(shape == configured)) {
        configure(shape);
        configured = shape;
      }
      clear();
      const int8_t* b = job.b + g * job.b_step;
      int64_t k = 0;
      for (; k + 64 <= codes; k += 64, b += 16 * step) {
        tile_load<4>(a + k, job.pitch);
        multiply_columns<4, 6>(tiles, b, step);
      }
      if (k < codes) {
        tile_load<5>(a + k, job.pitch);
        multiply_columns<5, 7>(tiles, b, step);
      }
      store_columns(tiles, pieces);
      const uint8_t* words = panel.groups + g * panel.group_step;
      for (int64_t j = 0; j < tiles; ++j) {
        add_group(panel, words, 16 * j, pieces[j], job.row_zero + row, rows, f);
      }
      a += codes;
    }
    if (job.last) finish_rows(job, row, rows, f);
  }
  tile_release();
}

}  // namespace

void fill_lowbit(LowbitTable& table) {
  table.packed_rows = table.packed_rows_levels = 4;
  table.gemm_u8s8_groups = gemm_u8s8_groups;
}

}  // namespace octavo::OCTAVO_AMX

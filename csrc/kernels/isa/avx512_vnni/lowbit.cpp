// Products with packed low-bit weights by vpdpbusd on 512-bit registers. Filled into the row by
// table.cpp; called by kernels/lowbit.cpp. Few rows: packed_product.h. More rows: tiles of up to 6
// rows x 32 columns over unpacked levels, whose float sums stay in registers beside the integer
// ones.
#include "../../kernel_table.h"
#include "packed_product.h"

namespace octavo::avx512_vnni {
namespace {

template <int kStored>
void multiply_linear(const PackedJob& job) {
  packed_panel<Masked<kStored>, Shifted<kStored>>(job);
}
template <int kStored>
void multiply_shuffled(const PackedJob& job) {
  packed_panel<Shuffled<kStored, 0x80, 2>, Shuffled<kStored, 0x80, 1>>(job);
}

void multiply_packed(const PackedJob& job) {
  if (job.panel.stored == 4) multiply_linear<4>(job);
  if (job.panel.stored == 3) multiply_linear<3>(job);
  if (job.panel.stored == 2) multiply_linear<2>(job);
}

void multiply_packed_levels(const PackedJob& job) {
  if (job.panel.stored == 4) multiply_shuffled<4>(job);
  if (job.panel.stored == 3) multiply_shuffled<3>(job);
  if (job.panel.stored == 2) multiply_shuffled<2>(job);
}

// ---- unpacking

template <int Q, class Codec>
OCTAVO_INLINE void unpack_quads(const Codec& codec, const __m512i* p, __m512i zero, int8_t* to,
                                int64_t step) {
  if constexpr (Q < quads_of(Codec::kStored)) {
    _mm512_storeu_si512(to + Q * step, _mm512_sub_epi8(codec.template quad<Q>(p), zero));
    unpack_quads<Q + 1>(codec, p, zero, to, step);
  }
}

/// Levels of all groups; `zero` is subtracted from what the codec gives, or the groups' own.
template <class Codec>
void unpack_with(const LowbitPanel& panel, int32_t constant_zero, int8_t* levels) {
  constexpr int kUnit = 4 * quads_of(Codec::kStored), kPlanes = planes_of(Codec::kStored);
  const Codec codec(panel);
  const int64_t step = panel.width * 4;
  const Ahead ahead{panel.ahead, panel.ahead_l2};
  const uint8_t* words = panel.groups;
  for (int64_t g = 0; g < panel.count; ++g, words += panel.group_step) {
    const int64_t length = g + 1 < panel.count ? panel.group_codes : panel.last_codes;
    __m512i zero[kLowbitColumns / 16];
    for (int64_t column = 0; column < panel.width; column += 16) {
      zero[column / 16] = bytes(constant_zero);
      if (panel.kind == LowbitKind::kAffine) {
        const auto* at = words + (panel.wide ? 8 : 4) * panel.width + column;
        const __m512i zeros =
            _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
        zero[column / 16] = _mm512_mullo_epi32(zeros, _mm512_set1_epi32(0x01010101));
      }
    }
    // In the order of memory.
    const uint8_t* codes = words + panel.width * panel.word_bytes;
    int8_t* to = levels;
    for (int64_t k = 0; k < length; k += kUnit) {
      for (int64_t column = 0; column < panel.width; column += 16) {
        __m512i p[kPlanes];
#pragma GCC unroll 4
        for (int i = 0; i < kPlanes; ++i) {
          p[i] = load(codes + i * step + column * 4);
          ask<1>(codes + i * step + column * 4, ahead);
        }
        unpack_quads<0>(codec, p, zero[column / 16], to + column * 4, step);
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
    unpack_with<Shuffled<kStored, 0, 1>>(panel, 0, levels);
  } else {
    unpack_with<Shifted<kStored>>(panel, panel.zero, levels);
  }
}

void unpack_levels(const LowbitPanel& panel, int8_t* levels) {
  if (panel.stored == 4) unpack_stored<4>(panel, levels);
  if (panel.stored == 3) unpack_stored<3>(panel, levels);
  if (panel.stored == 2) unpack_stored<2>(panel, levels);
}

// ---- products with unpacked levels

/// Float sums of M rows x 16 V columns: reads their start, writes their results.
template <int M, int V>
struct FloatSums {
  OCTAVO_INLINE FloatSums(const GroupJob& job, int64_t row, int64_t column) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        f[m][v] = job.first
                      ? _mm512_setzero_ps()
                      : _mm512_load_ps(job.acc + (row + m) * kLowbitColumns + column + 16 * v);
      }
    }
  }
  /// y = finish(f, bias, row), or back to acc.
  template <class Finish>
  OCTAVO_INLINE void store(const GroupJob& job, int64_t row, int64_t column,
                           Finish&& finish) const {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const int64_t n = column + 16 * v;
        if (job.last) {
          const __mmask16 mask = lanes(job.panel.n - n);
          const __m512 bias = _mm512_maskz_loadu_ps(mask, job.bias + n);
          _mm512_mask_storeu_ps(job.y + (row + m) * job.ldy + n, mask,
                                finish(f[m][v], bias, row + m));
        } else {
          _mm512_store_ps(job.acc + (row + m) * kLowbitColumns + n, f[m][v]);
        }
      }
    }
  }
  __m512 f[M][V];
};

/// Products of quad Q from a; its levels are at b.
template <int Q, int M, int V>
OCTAVO_INLINE void multiply_quad(__m512i (&sum)[M][V], const uint8_t* const (&a)[M],
                                 const int8_t* b, const Ahead& ahead) {
  __m512i w[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) w[v] = load(b + 64 * v);
  if constexpr (V == 4) ask<V>(b, ahead);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const __m512i u = broadcast4(a[m] + 4 * Q);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) dot(sum[m][v], u, w[v]);
  }
}

/// kDeep: packed_tile's.
template <int M, int V, bool kDeep>
__attribute__((noinline)) void integer_tile_of(const GroupJob& job, int64_t row, int64_t column) {
  const LowbitPanel& panel = job.panel;
  FloatSums<M, V> sums(job, row, column);
  const Factors<M> factors(job.row_zero + row, -1, 0);
  const uint8_t* a[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) a[m] = job.a + (row + m) * job.pitch;
  const int8_t* group = job.b + column * 4;
  const uint8_t* words = panel.groups;
  const int64_t step = V == 4 ? 256 : panel.width * 4;
  const Ahead ahead{panel.ahead, kDeep ? panel.ahead_l2 : 0};
  for (int64_t g = 0; g < panel.count; ++g, words += panel.group_step, group += job.b_step) {
    __m512i sum[M][V];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] = _mm512_setzero_si512();
    }
    const int8_t* b = group;
    if constexpr (V == 4) {
      // The loop prefetches what follows levels; this fills the gap that the words leave.
      ask<V>(b - 4 * panel.width, ahead);
    }
    int64_t k = g + 1 < panel.count ? panel.group_codes : panel.last_codes;
    // Four quads at a time: branch predictors predict the end of loops with few iterations.
    for (; k >= 16; k -= 16, b += 4 * step) {
      multiply_quad<0>(sum, a, b, ahead);
      multiply_quad<1>(sum, a, b + step, ahead);
      multiply_quad<2>(sum, a, b + 2 * step, ahead);
      multiply_quad<3>(sum, a, b + 3 * step, ahead);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) a[m] += 16;
    }
    for (; k > 0; k -= 4, b += step) {
      multiply_quad<0>(sum, a, b, ahead);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) a[m] += 4;
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const __m512 scale = take_words(words, panel, column + 16 * v, factors, sum, v);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        sums.f[m][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m][v]), scale, sums.f[m][v]);
      }
    }
  }
  sums.store(job, row, column, [&](__m512 f, __m512 bias, int64_t m) {
    return _mm512_fmadd_ps(f, _mm512_set1_ps(job.row_scale[m]), bias);
  });
}

template <int M, int V>
void integer_tile(const GroupJob& job, int64_t row, int64_t column) {
  if constexpr (M == 1 && V == 4) {  // more rows would put sums on the stack
    if (job.panel.ahead_l2 != 0) return integer_tile_of<M, V, true>(job, row, column);
  }
  integer_tile_of<M, V, false>(job, row, column);
}

constexpr int kMost = 6;  // rows of a tile
using Tile = void (*)(const GroupJob&, int64_t row, int64_t column);
template <int V>
constexpr Tile kTiles[kMost + 1] = {nullptr,
                                    integer_tile<1, V>,
                                    integer_tile<2, V>,
                                    integer_tile<3, V>,
                                    integer_tile<4, V>,
                                    integer_tile<5, V>,
                                    integer_tile<6, V>};

void gemm_u8s8_groups(const GroupJob& job) {
  const int64_t width = job.panel.width;
  cut_rows(job.rows, kMost, [&](int64_t row, int64_t m) {
    if (width == 64) return kTiles<4>[m](job, row, 0);
    int64_t column = 0;
    for (; column + 32 <= width; column += 32) kTiles<2>[m](job, row, column);
    if (column < width) kTiles<1>[m](job, row, column);
  });
}

int32_t flip_u8_s8(uint8_t* codes, int64_t count) {
  const __m512i flip = bytes(0x80), ones = bytes(1);
  __m512i sum = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    const __m512i flipped = _mm512_xor_si512(load(codes + i), flip);
    dot(sum, ones, flipped);
    _mm512_storeu_si512(codes + i, flipped);
  }
  if (i < count) {
    const __mmask64 mask = (__mmask64{1} << (count - i)) - 1;
    const __m512i some = _mm512_maskz_loadu_epi8(mask, codes + i);
    const __m512i flipped = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(some, flip));
    dot(sum, ones, flipped);
    _mm512_mask_storeu_epi8(codes + i, mask, flipped);
  }
  return _mm512_reduce_add_epi32(sum);
}

}  // namespace

void fill_lowbit(LowbitTable& table) {
  table.tile_rows = 6;
  // Measured on Zen 5: shifts and masks hide behind products at any number of rows.
  table.packed_rows = INT64_MAX;
  table.packed_rows_levels = 8;
  table.multiply_packed = multiply_packed;
  table.multiply_packed_levels = multiply_packed_levels;
  table.unpack_levels = unpack_levels;
  table.gemm_u8s8_groups = gemm_u8s8_groups;
  table.flip_u8_s8 = flip_u8_s8;
}

}  // namespace octavo::avx512_vnni

// The tile registers of AMX: configure, load, multiply, store. Included by gemm.cpp and lowbit.cpp.
// With OCTAVO_AMX_EMULATED the same functions are plain C++ that obey Intel's description of the
// instructions (a use that the processor would refuse traps), so that the kernel's tests run on any
// machine; the product never compiles that half.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(OCTAVO_AMX_EMULATED)
#define OCTAVO_AMX amx_emulated
#else
#define OCTAVO_AMX amx_int8
#endif

namespace octavo::OCTAVO_AMX {
namespace {

/// Operand of ldtilecfg.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t bytes[16];  // of a row
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

/// What a whole tile holds in memory: 16 rows of 64 bytes.
struct alignas(64) TilePiece {
  int32_t row[16][16];
};
static_assert(sizeof(TilePiece) == 1024);

#if defined(OCTAVO_AMX_EMULATED)

struct EmulatedTiles {
  TileConfig config;
  uint8_t data[8][16][64];
};
thread_local EmulatedTiles tiles;

inline void require(bool holds) {
  if (!holds) __builtin_trap();
}

inline void tile_configure(const TileConfig& config) {
  require(config.palette == 1 && config.start_row == 0);
  for (int t = 0; t < 16; ++t) {
    require(t < 8 ? config.rows[t] <= 16 && config.bytes[t] <= 64
                  : config.rows[t] == 0 && config.bytes[t] == 0);
    require((config.rows[t] == 0) == (config.bytes[t] == 0));
  }
  __builtin_memset(&tiles, 0, sizeof tiles);
  tiles.config = config;
}

inline void tile_release() { __builtin_memset(&tiles, 0, sizeof tiles); }

template <int T>
void tile_load(const void* memory, int64_t stride) {
  require(tiles.config.palette == 1 && tiles.config.rows[T] != 0);
  __builtin_memset(tiles.data[T], 0, sizeof tiles.data[T]);
  for (int r = 0; r < tiles.config.rows[T]; ++r) {
    __builtin_memcpy(tiles.data[T][r], static_cast<const uint8_t*>(memory) + r * stride,
                     tiles.config.bytes[T]);
  }
}

template <int T>
void tile_zero() {
  require(tiles.config.palette == 1 && tiles.config.rows[T] != 0);
  __builtin_memset(tiles.data[T], 0, sizeof tiles.data[T]);
}

template <int T>
void tile_store(TilePiece& piece) {
  require(tiles.config.palette == 1 && tiles.config.rows[T] != 0);
  for (int r = 0; r < tiles.config.rows[T]; ++r) {
    __builtin_memcpy(piece.row[r], tiles.data[T][r], tiles.config.bytes[T]);
  }
}

/// Tile C += u8 tile A times s8 tile B, modulo 2^32; B holds quads of K in a row.
template <int C, int A, int B>
void tile_multiply() {
  static_assert(C != A && C != B && A != B);
  const TileConfig& config = tiles.config;
  require(config.palette == 1 && config.rows[C] == config.rows[A] &&
          config.bytes[C] == config.bytes[B] && config.bytes[A] == 4 * config.rows[B] &&
          config.bytes[C] % 4 == 0 && config.rows[C] != 0 && config.rows[B] != 0);
  for (int m = 0; m < config.rows[C]; ++m) {
    uint32_t sums[16];
    __builtin_memcpy(sums, tiles.data[C][m], sizeof sums);
    for (int k = 0; k < config.rows[B]; ++k) {
      for (int n = 0; n < config.bytes[C] / 4; ++n) {
        for (int i = 0; i < 4; ++i) {
          const int32_t a = tiles.data[A][m][4 * k + i];
          const int32_t b = static_cast<int8_t>(tiles.data[B][k][4 * n + i]);
          sums[n] += static_cast<uint32_t>(a * b);
        }
      }
    }
    __builtin_memcpy(tiles.data[C][m], sums, sizeof sums);
  }
  // Rows that the configuration leaves out become zero.
  for (int m = config.rows[C]; m < 16; ++m) __builtin_memset(tiles.data[C][m], 0, 64);
}

#else

// Assembly instead of GCC's macros: those take a literal token for the register, and the one that
// loads a configuration declares only part of what it reads, so that GCC 12 drops the stores that
// fill it. Loads of activations and weights need no memory clobber, since nothing here writes
// those.

inline void tile_configure(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

inline void tile_release() { __asm__ volatile("tilerelease"); }

template <int T>
inline __attribute__((always_inline)) void tile_load(const void* memory, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(memory), "r"(stride), "i"(T));
}

template <int T>
inline __attribute__((always_inline)) void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
}

template <int T>
inline __attribute__((always_inline)) void tile_store(TilePiece& piece) {
  __asm__ volatile("tilestored %%tmm%c3, (%1,%2,1)"
                   : "+m"(piece)
                   : "r"(&piece), "r"(int64_t{64}), "i"(T));
}

/// Tile C += u8 tile A times s8 tile B, modulo 2^32; B holds quads of K in a row.
template <int C, int A, int B>
inline __attribute__((always_inline)) void tile_multiply() {
  __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace
}  // namespace octavo::OCTAVO_AMX

// How rows are cut into tiles. Included by kernels of several instruction sets, each with its own
// copy, compiled with its own flags (unnamed namespace).
#pragma once

#include <cstdint>

namespace octavo {
namespace {

/// Cuts rows into tiles of nearly equal height, at most `most`: calls tile(first row, rows).
template <class Tile>
inline __attribute__((always_inline)) void cut_rows(int64_t rows, int64_t most, Tile&& tile) {
  const int64_t pieces = (rows + most - 1) / most;
  int64_t row = 0;
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t m = rows / pieces + (i < rows % pieces ? 1 : 0);
    tile(row, m);
    row += m;
  }
}

}  // namespace
}  // namespace octavo

// Joins kernel rows of few codes: three channels and seven columns are 21 codes of a K step of 64,
// so several rows of each pixel are copied next to one another first. Included by gemm.cpp.
#pragma once

#include "work.h"

namespace octavo::OCTAVO_AMX {
namespace {

/// Copies of the pixels of the latest tiles, in a ring. A load of bytes that were just stored in
/// smaller pieces waits until the stores have reached the cache, so the tiles of a block are
/// written while the block before is multiplied.
class JoinedPixels {
 public:
  /// `count` pixels of a job with joined rows, job.depth bytes each.
  const uint8_t* copy(const GemmJob& job, int64_t pitch, const uint8_t* from, int64_t count) {
    uint8_t* const start = tiles_[next_];
    next_ = (next_ + 1) % kTiles;
    uint8_t* line = start;
    for (int64_t r = 0, place = 0; r < job.runs; ++r) {
      copy_row(line + place, 64 - place, job.depth, from + job.run_offset[r], pitch, count,
               job.run_bytes);
      place += job.run_bytes;
      if ((r + 1) % job.joined_rows == 0) line += 64, place = 0;
    }
    return start;
  }

 private:
  /// Copies n bytes of each pixel with as few stores as fit into the `room` left of a line. Bytes
  /// beyond n are overwritten by the next row, or meet weights that are zero.
  static void copy_row(uint8_t* to, int64_t room, int64_t to_pitch, const uint8_t* from,
                       int64_t pitch, int64_t count, int64_t n) {
    const auto copy = [&]<size_t kBytes>(int64_t at) {
      for (int64_t p = 0; p < count; ++p) {
        __builtin_memcpy(to + at + p * to_pitch, from + at + p * pitch, kBytes);
      }
    };
    if (room >= 32) return copy.template operator()<32>(0);
    int64_t at = 0;
    for (; n - at >= 16; at += 16) copy.template operator()<16>(at);
    if (at < n && room - at >= 16) return copy.template operator()<16>(at);
    if (at > 0 && at < n) return copy.template operator()<16>(n - 16);
    for (; n - at >= 4; at += 4) copy.template operator()<4>(at);
    for (; at < n; ++at) copy.template operator()<1>(at);
  }

  static constexpr int kTiles = 8;
  alignas(64) uint8_t tiles_[kTiles][16 * 64 * kJoinedRuns];
  int next_ = 0;
};

}  // namespace
}  // namespace octavo::OCTAVO_AMX

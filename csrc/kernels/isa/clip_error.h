// The error of weights rounded with one scale, included by each instruction set's clip_error.cpp
// (vectors.h). No operation is contracted, and sums have sixteen parts whatever the vectors are, so
// all have equal bits.
#pragma once

#include "vectors.h"

namespace octavo {
namespace {

constexpr int64_t kParts = 16 / kLanes;

/// x^2.4 for x >= 0, within 1e-6 of it; below 2^-40 that of 2^-40.
OCTAVO_INLINE void raise(Floats& x) {
  const Floats smallest = Floats{} + 0x1p-40f;
  x = x > smallest ? x : smallest;
  // x = m 2^e with m from sqrt(1/2) to sqrt(2); log2 m by the series of atanh.
  const Words bits = __builtin_bit_cast(Words, x);
  const Words e = (bits - 0x3f3504f3) >> 23;
  const Words mantissa = bits - (e << 23);
  const Floats m = __builtin_bit_cast(Floats, mantissa);
  const Floats s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
  const Floats series = ((s2 * (1.0f / 7) + 1.0f / 5) * s2 + 1.0f / 3) * s2 + 1.0f;
  Floats y = (__builtin_convertvector(e, Floats) + s * series * 2.88539008f) * 0.4f;
  // x^0.4 = 2^n 2^f with f from -1/2 to 1/2; 2^f by its series.
  Floats n = y;
  round_to_even(n);
  const Floats z = (y - n) * 0.693147181f;
  Floats power = z * (1.0f / 720) + 1.0f / 120;
  power = power * z + 1.0f / 24;
  power = power * z + 1.0f / 6;
  power = power * z + 0.5f;
  power = power * z + 1.0f;
  power = power * z + 1.0f;
  const Words scale = (__builtin_convertvector(n, Words) + 127) << 23;
  x = x * x * (power * __builtin_bit_cast(Floats, scale));
}

/// Reads a vector, or the values that there are, with zeros after them.
OCTAVO_INLINE void read(Floats& to, const float* from, int64_t count) {
  if (count >= kLanes) {
    __builtin_memcpy(&to, from, sizeof(to));
  } else {
    to = Floats{};
    if (count > 0) __builtin_memcpy(&to, from, static_cast<size_t>(count) * sizeof(float));
  }
}

double clip_error_f32(const ClipErrorJob& job) {
  const float inverse = 1.0f / job.scale, per_unit = 1.0f / job.unit;
  const Floats low = Floats{} + job.low, high = Floats{} + job.high;
  double total = 0.0;
  for (int64_t begin = 0; begin < job.count; begin += kClipErrorBlock) {
    const int64_t left = job.count - begin;
    const int64_t count = left < kClipErrorBlock ? left : kClipErrorBlock;
    Floats sum[kParts]{};
    for (int64_t i = 0; i < count; i += 16) {
#pragma GCC unroll 4
      for (int64_t part = 0; part < kParts; ++part) {
        const int64_t at = begin + i + part * kLanes, left_here = job.count - at;
        Floats x;
        read(x, job.x + at, left_here);
        Floats q = x * inverse;
        q = q > low ? q : low;
        q = q < high ? q : high;
        round_to_even(q);
        Floats off = (x - q * job.scale) * per_unit;
        off = off < 0.0f ? -off : off;
        raise(off);
        if (job.importance != nullptr) {
          Floats importance;
          read(importance, job.importance + at, left_here);
          off *= importance;
        }
        sum[part] += off;
      }
    }
    for (int64_t i = 0; i < 16; ++i) total += static_cast<double>(sum[i / kLanes][i % kLanes]);
  }
  return total;
}

}  // namespace
}  // namespace octavo

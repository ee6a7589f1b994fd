// One time step of a recurrent network for one sequence, included by each instruction set's
// recurrent_cell.cpp (vectors.h). No operation is contracted, so all have equal bits.
#pragma once

#include "vectors.h"

namespace octavo {
namespace {

/// e^x, within 2 units in the last place, for x in [-87, 87]; NaN stays NaN.
OCTAVO_INLINE void exponential(Floats& x) {
  // x = n ln 2 + z with |z| <= ln 2 / 2; ln 2 in two parts, of which n times the first is exact.
  Floats n = x * 1.44269504f;
  round_to_even(n);
  const Floats z = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats power = z * (1.0f / 5040) + 1.0f / 720;
  power = power * z + 1.0f / 120;
  power = power * z + 1.0f / 24;
  power = power * z + 1.0f / 6;
  power = power * z + 0.5f;
  power = power * z * z + z + 1.0f;
  const Words exponent = (__builtin_convertvector(n, Words) + 127) << 23;
  x = power * __builtin_bit_cast(Floats, exponent);
}

/// NaN stays NaN.
OCTAVO_INLINE void at_most(Floats& x, float bound) {
  const Floats bounds = Floats{} + bound;
  x = bounds < x ? bounds : x;
}
OCTAVO_INLINE void at_least(Floats& x, float bound) {
  const Floats bounds = Floats{} + bound;
  x = bounds > x ? bounds : x;
}

/// 1 / (1 + e^-x), x as if in [-87, 87]
OCTAVO_INLINE void sigmoid(Floats& x) {
  x = -x;
  at_least(x, -87.0f);
  at_most(x, 87.0f);
  exponential(x);
  x = 1.0f / (1.0f + x);
}

/// (e^2x - 1) / (e^2x + 1); a polynomial for |x| < 5/8, where that would cancel (Cephes' tanhf).
OCTAVO_INLINE void hyperbolic_tangent(Floats& x) {
  const Floats square = x * x;
  Floats near = square * -5.70498872745e-3f + 2.06390887954e-2f;
  near = near * square - 5.37397155531e-2f;
  near = near * square + 1.33314422036e-1f;
  near = near * square - 3.33332819422e-1f;
  near = near * square * x + x;
  const Words sign = __builtin_bit_cast(Words, x) & INT32_MIN;
  Floats far = __builtin_bit_cast(Floats, __builtin_bit_cast(Words, x + x) & INT32_MAX);
  at_most(far, 87.0f);
  exponential(far);
  far = 1.0f - 2.0f / (far + 1.0f);
  far = __builtin_bit_cast(Floats, __builtin_bit_cast(Words, far) | sign);
  x = square < 0.390625f ? near : far;
}

OCTAVO_INLINE void read(Floats& to, const float* from) { __builtin_memcpy(&to, from, sizeof(to)); }
OCTAVO_INLINE void write(float* to, const Floats& from) {
  __builtin_memcpy(to, &from, sizeof(from));
}

/// The input's part of a gate in x, the hidden state's in h.
OCTAVO_INLINE void gate(const RecurrentCell& cell, int64_t index, int64_t at, Floats& x,
                        Floats& h) {
  read(x, cell.x + index * cell.width + at);
  read(h, cell.h + index * cell.width + at);
}
OCTAVO_INLINE void gate(const RecurrentCell& cell, int64_t index, int64_t at, Floats& sum) {
  Floats h;
  gate(cell, index, at, sum, h);
  sum += h;
}

template <RecurrentMode kMode>
OCTAVO_INLINE void units(const RecurrentCell& cell, int64_t at) {
  if constexpr (kMode == RecurrentMode::kLstm) {
    Floats i, f, g, o, c;
    gate(cell, 0, at, i);
    gate(cell, 1, at, f);
    gate(cell, 2, at, g);
    gate(cell, 3, at, o);
    read(c, cell.state + at);
    sigmoid(i);
    sigmoid(f);
    hyperbolic_tangent(g);
    c = f * c + i * g;
    write(cell.next_c + at, c);
    sigmoid(o);
    hyperbolic_tangent(c);
    write(cell.next_h + at, o * c);
  } else if constexpr (kMode == RecurrentMode::kGru) {
    Floats r, z, n, h, state;
    gate(cell, 0, at, r);
    gate(cell, 1, at, z);
    gate(cell, 2, at, n, h);
    read(state, cell.state + at);
    sigmoid(r);
    sigmoid(z);
    n += r * h;
    hyperbolic_tangent(n);
    write(cell.next_h + at, n + z * (state - n));
  } else {
    Floats sum;
    gate(cell, 0, at, sum);
    if constexpr (kMode == RecurrentMode::kTanh) {
      hyperbolic_tangent(sum);
    } else {
      sum = sum < 0.0f ? Floats{} : sum;
    }
    write(cell.next_h + at, sum);
  }
}

/// Whole vectors at a time; the last values are computed in a vector of their own.
template <RecurrentMode kMode>
void cells(const RecurrentCell& cell) {
  constexpr int64_t kGates = gates_of(kMode);
  int64_t at = 0;
  for (; at + kLanes <= cell.width; at += kLanes) units<kMode>(cell, at);
  if (at == cell.width) return;
  const size_t bytes = static_cast<size_t>(cell.width - at) * sizeof(float);
  float x[kGates * kLanes]{}, h[kGates * kLanes]{}, state[kLanes]{}, next_h[kLanes], next_c[kLanes];
  for (int64_t gate = 0; gate < kGates; ++gate) {
    __builtin_memcpy(x + gate * kLanes, cell.x + gate * cell.width + at, bytes);
    __builtin_memcpy(h + gate * kLanes, cell.h + gate * cell.width + at, bytes);
  }
  if (kGates > 1) __builtin_memcpy(state, cell.state + at, bytes);
  units<kMode>(RecurrentCell{kMode, kLanes, x, h, state, next_h, next_c}, 0);
  __builtin_memcpy(cell.next_h + at, next_h, bytes);
  if (kMode == RecurrentMode::kLstm) __builtin_memcpy(cell.next_c + at, next_c, bytes);
}

void recurrent_cell_f32(const RecurrentCell& cell) {
  switch (cell.mode) {
    case RecurrentMode::kLstm:
      return cells<RecurrentMode::kLstm>(cell);
    case RecurrentMode::kGru:
      return cells<RecurrentMode::kGru>(cell);
    case RecurrentMode::kTanh:
      return cells<RecurrentMode::kTanh>(cell);
    case RecurrentMode::kRelu:
      return cells<RecurrentMode::kRelu>(cell);
  }
}

}  // namespace
}  // namespace octavo

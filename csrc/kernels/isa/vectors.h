// Vectors of OCTAVO_VECTOR_BYTES, for loops that are written once for all of x86 and scalar: each
// instruction set defines the width before it includes such a loop, compiled with its own flags
// (unnamed namespace).
#pragma once

#include "../kernel_table.h"

namespace octavo {
namespace {

#define OCTAVO_INLINE inline __attribute__((always_inline))

using Floats = float __attribute__((vector_size(OCTAVO_VECTOR_BYTES)));
using Words = int32_t __attribute__((vector_size(OCTAVO_VECTOR_BYTES)));
constexpr int64_t kLanes = OCTAVO_VECTOR_BYTES / 4;

/// Rounds to the nearest integer, halves to even: |x| < 2^22.
OCTAVO_INLINE void round_to_even(Floats& x) { x = (x + 12582912.0f) - 12582912.0f; }

}  // namespace
}  // namespace octavo

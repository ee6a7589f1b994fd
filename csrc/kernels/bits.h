// The canonical bit stream of weight codes: LSB-first, two's complement, each output channel starts
// at a byte. Used by pack.cpp and by tiles that read packed rows. Everything here has internal
// linkage.
#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo {

/// Bytes of `count` codes of `bits` bits.
[[maybe_unused]] static inline int64_t bit_bytes(int64_t count, int32_t bits) {
  return (count * bits + 7) / 8;
}

/// Writes `count` codes of `bits` bits (2..8); unused bits of the last byte become 0.
[[maybe_unused]] static inline void put_bits(const int8_t* codes, int64_t count, int32_t bits,
                                             uint8_t* out) {
  const uint32_t mask = (1u << bits) - 1;
  uint32_t held = 0;
  int32_t held_bits = 0;
  for (int64_t i = 0; i < count; ++i) {
    held |= (static_cast<uint32_t>(codes[i]) & mask) << held_bits;
    held_bits += bits;
    while (held_bits >= 8) {
      *out++ = static_cast<uint8_t>(held);
      held >>= 8;
      held_bits -= 8;
    }
  }
  if (held_bits > 0) *out = static_cast<uint8_t>(held);
}

/// Reads `count` codes of `bits` bits (2..8) and extends their sign.
[[maybe_unused]] static inline void get_bits(const uint8_t* in, int64_t count, int32_t bits,
                                             int8_t* codes) {
  const uint32_t mask = (1u << bits) - 1;
  const uint32_t sign = 1u << (bits - 1);
  uint32_t held = 0;
  int32_t held_bits = 0;
  for (int64_t i = 0; i < count; ++i) {
    while (held_bits < bits) {
      held |= static_cast<uint32_t>(*in++) << held_bits;
      held_bits += 8;
    }
    const uint32_t code = held & mask;
    codes[i] = static_cast<int8_t>(static_cast<int32_t>(code ^ sign) - static_cast<int32_t>(sign));
    held >>= bits;
    held_bits -= bits;
  }
}

}  // namespace octavo

// Where every code of a packed low-bit weight lies: the one description of both memory orders
// (csrc/README.md draws them). Used by lowbit_pack.cpp (writes and reads them), lowbit.cpp and the
// tiles. Everything here is a struct, a constant or a function with internal linkage.
//
// kColumns, for products: output channels are cut into panels of 64 columns, the last one narrower
// (a multiple of 16). A panel holds its groups of inputs one after the other, each the words of its
// columns and then its codes, so that a matrix-vector product reads one stream:
//
//   [words of group 0 | codes of group 0][words of group 1 | codes of group 1] ...
//
// kRows, for look-ups: every row is its own LSB-first bit stream.
#pragma once

#include <cstdint>

namespace octavo {

/// What turns a code into a level, the integer that the group's scale multiplies.
enum class LowbitKind : int32_t {
  kSymmetric = 0,  // code - 2^(bits - 1)
  kAffine = 1,     // code - zero point of the group
  kLevels = 2,     // table of the channel's 64 neighbours [code]
};

enum class LowbitOrder : int32_t { kColumns = 0, kRows = 1 };

/// First 128 bytes of a packed low-bit weight; sections follow at 64-byte aligned offsets.
struct LowbitHeader {
  uint32_t magic;  // kLowbitMagic
  int32_t order;   // LowbitOrder
  int32_t kind;    // LowbitKind
  int32_t bits;    // of a code, 2..8
  int64_t out_features, in_features;
  int64_t group_size;     // inputs that share a scale; 0: the whole row
  int64_t groups;         // of a row, at least 1
  int64_t codes_offset;   // bytes from the header; so are the next four
  int64_t scale_offset;   // kRows: bfloat16 (whole rows: float) [out_features][groups]
  int64_t zero_offset;    // kRows, kAffine: uint8 [out_features][groups]
  int64_t levels_offset;  // kLevels: int8 [ceil(out_features / 64)][2^bits]
  int64_t bias_offset;    // kColumns: float [out_features], zeros where the layer has none
  int64_t total_bytes;
};
inline constexpr uint32_t kLowbitMagic = 0x4f43544c;  // "LTCO"
static_assert(sizeof(LowbitHeader) <= 128);

/// Columns of a panel; also the output channels that share a level table.
inline constexpr int64_t kLowbitColumns = 64;

/// A group whose sum of levels and whose scale are 16 bits each has at most so many inputs: levels
/// lie in [-128, 127], and 128 * 256 = 2^15.
inline constexpr int64_t kLargestGroup = 256;

/// Bits that a code takes in kColumns: 2, 3, 4, or a byte that holds the level itself.
[[maybe_unused]] static inline int32_t stored_bits(int32_t bits) { return bits <= 4 ? bits : 8; }

/// Inputs whose codes share bytes; groups are padded to multiples of it.
[[maybe_unused]] static inline int64_t code_unit(int32_t stored) {
  return stored == 2 ? 16 : stored == 3 ? 32 : stored == 4 ? 8 : 4;
}

/// The most features on either side.
inline constexpr int64_t kLargestFeatures = int64_t{1} << 31;

/// Sizes derived from a header of kColumns.
struct LowbitGeometry {
  int32_t stored;       // bits
  int64_t group;        // inputs of a full group
  int64_t group_codes;  // padded
  int64_t last_codes;   // of the last group, padded
  int64_t total_codes;  // of a row, padded
  bool wide;            // words of 8 bytes
  int64_t word_bytes;   // of a column and group
  int64_t panels;
};

[[maybe_unused]] static inline int64_t lowbit_round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// Inputs of group `g` that exist.
[[maybe_unused]] static inline int64_t group_inputs(const LowbitHeader& h, int64_t g) {
  if (h.group_size == 0) return h.in_features;
  const int64_t left = h.in_features - g * h.group_size;
  return left < h.group_size ? left : h.group_size;
}

[[maybe_unused]] static inline LowbitGeometry lowbit_geometry(const LowbitHeader& h) {
  LowbitGeometry g{};
  g.stored = stored_bits(h.bits);
  g.group = h.group_size == 0 ? h.in_features : h.group_size;
  const int64_t unit = code_unit(g.stored);
  g.group_codes = lowbit_round_up(g.group, unit);
  g.last_codes = lowbit_round_up(group_inputs(h, h.groups - 1), unit);
  g.total_codes = (h.groups - 1) * g.group_codes + g.last_codes;
  g.wide = h.group_size == 0;
  g.word_bytes = (g.wide ? 8 : 4) + (h.kind == static_cast<int32_t>(LowbitKind::kAffine) ? 1 : 0);
  g.panels = (h.out_features + kLowbitColumns - 1) / kLowbitColumns;
  return g;
}

/// Columns of panel `p` in memory.
[[maybe_unused]] static inline int64_t lowbit_width(const LowbitHeader& h, int64_t p) {
  const int64_t left = lowbit_round_up(h.out_features, 16) - p * kLowbitColumns;
  return left < kLowbitColumns ? left : kLowbitColumns;
}

/// Bytes of `codes` codes of one column.
[[maybe_unused]] static inline int64_t stored_bytes(int32_t stored, int64_t codes) {
  return codes * stored / 8;
}

/// Where group `g` of panel `p` begins in the section of codes: its words.
[[maybe_unused]] static inline int64_t group_start(const LowbitHeader& h, const LowbitGeometry& g,
                                                   int64_t p, int64_t group) {
  const int64_t column = h.groups * g.word_bytes + stored_bytes(g.stored, g.total_codes);
  return p * kLowbitColumns * column +
         lowbit_width(h, p) * group * (g.word_bytes + stored_bytes(g.stored, g.group_codes));
}

/// Bytes of the section of codes.
[[maybe_unused]] static inline int64_t columns_bytes(const LowbitHeader& h,
                                                     const LowbitGeometry& g) {
  return lowbit_round_up(h.out_features, 16) *
         (h.groups * g.word_bytes + stored_bytes(g.stored, g.total_codes));
}

/// Reads code `k` of column `n` from the codes of a group; stored 2, 3 or 4.
///
/// Codes of four inputs (a quad) of one column stand in the four bytes of a dword, as dot products
/// take them, several quads over one another:
///
///   4 bits: quads 0 1              at bits 0 4
///   2 bits: quads 0 1 2 3          at bits 0 2 4 6
///   3 bits: three dwords A B C (planes); quads 0 2 4 at bits 0..2 of A B C, quads 1 3 5 at bits
///           3..5; quad 6 has its upper two bits at bits 6..7 of A, quad 7 at those of B, and their
///           lowest bits are bits 6 and 7 of C
[[maybe_unused]] static inline uint32_t packed_code(const uint8_t* codes, int64_t width,
                                                    int32_t stored, int64_t k, int64_t n) {
  const int64_t unit = code_unit(stored), planes = stored == 3 ? 3 : 1;
  const uint8_t* at = codes + (k / unit * planes * width + n) * 4 + k % 4;
  const auto quad = static_cast<int32_t>(k % unit / 4);
  if (stored != 3) return static_cast<uint32_t>(*at) >> (quad * stored) & ((1u << stored) - 1);
  const uint32_t a = at[0], b = at[width * 4], c = at[width * 8];
  if (quad == 6) return a >> 6 << 1 | (c >> 6 & 1);
  if (quad == 7) return b >> 6 << 1 | c >> 7;
  return (quad < 2 ? a : quad < 4 ? b : c) >> (quad % 2 * 3) & 7;
}

/// Writes code `k` of column `n`; the bytes hold zeros there.
[[maybe_unused]] static inline void put_packed_code(uint8_t* codes, int64_t width, int32_t stored,
                                                    int64_t k, int64_t n, uint32_t code) {
  const int64_t unit = code_unit(stored), planes = stored == 3 ? 3 : 1;
  uint8_t* at = codes + (k / unit * planes * width + n) * 4 + k % 4;
  const auto quad = static_cast<int32_t>(k % unit / 4);
  const auto put = [](uint8_t* byte, uint32_t bits) { *byte |= static_cast<uint8_t>(bits); };
  if (stored != 3) {
    put(at, code << (quad * stored));
  } else if (quad >= 6) {
    put(at + (quad - 6) * width * 4, code >> 1 << 6);
    put(at + width * 8, (code & 1) << quad);
  } else {
    put(at + quad / 2 * width * 4, code << (quad % 2 * 3));
  }
}

/// Scale and sum of levels of one column and group. The words of a group: uint32 [width], bfloat16
/// scale in the upper half and int16 sum in the lower; wide: float [width], then int32 [width].
/// With zero points, uint8 [width] follow.
struct GroupWord {
  float scale;
  int32_t sum;
};
[[maybe_unused]] static inline GroupWord group_word(const uint8_t* words, int64_t width, bool wide,
                                                    int64_t n) {
  GroupWord result;
  uint32_t word;
  __builtin_memcpy(&word, words + 4 * n, 4);
  if (wide) {
    __builtin_memcpy(&result.scale, &word, 4);
    __builtin_memcpy(&result.sum, words + 4 * (width + n), 4);
    return result;
  }
  const uint32_t scale = word & 0xffff0000u;
  __builtin_memcpy(&result.scale, &scale, 4);
  result.sum = static_cast<int16_t>(word & 0xffff);
  return result;
}

}  // namespace octavo

// Packed low-bit weights: writes, reads and checks them. Called by ops/ when a layer is built,
// saved or loaded. Speed matters little here; memory orders are described in lowbit_layout.h.
#include <cstring>
#include <vector>

#include "bits.h"
#include "kernels.h"

namespace octavo {
namespace {

constexpr int64_t kHeaderBytes = 128;
constexpr int64_t kAlignment = 64;

/// Everything in a header that follows from the shape. False if a size would not fit: features are
/// at most 2^31 each, so that a row of codes and words has less than 2^36 bytes.
bool make_header(const LowbitWeight& w, LowbitHeader* header) {
  LowbitHeader h{};
  h.magic = kLowbitMagic;
  h.order = static_cast<int32_t>(w.order);
  h.kind = static_cast<int32_t>(w.kind);
  h.bits = w.bits;
  h.out_features = w.out_features;
  h.in_features = w.in_features;
  h.group_size = w.group_size;
  h.groups = lowbit_groups(w.in_features, w.group_size);
  int64_t bound;
  if (w.out_features > kLargestFeatures || w.in_features > kLargestFeatures ||
      __builtin_mul_overflow(w.out_features + 64, 16 * (w.in_features + 1024), &bound)) {
    return false;
  }
  int64_t at = kHeaderBytes;
  const auto section = [&](int64_t bytes) {
    const int64_t start = at;
    at += lowbit_round_up(bytes, kAlignment);
    return start;
  };
  const bool rows = w.order == LowbitOrder::kRows;
  h.codes_offset = section(rows ? w.out_features * bit_bytes(w.in_features, w.bits)
                                : columns_bytes(h, lowbit_geometry(h)));
  const int64_t scales = w.out_features * h.groups;
  h.scale_offset = section(!rows ? 0 : scales * (w.group_size == 0 ? 4 : 2));
  h.zero_offset = section(rows && w.kind == LowbitKind::kAffine ? scales : 0);
  h.levels_offset = section(w.kind == LowbitKind::kLevels
                                ? ((w.out_features + kLowbitColumns - 1) / kLowbitColumns) << w.bits
                                : 0);
  h.bias_offset = section(rows ? 0 : w.out_features * 4);
  h.total_bytes = at;
  *header = h;
  return true;
}

/// Level of a code; `zero` is the group's zero point, `table` the channel's levels.
int32_t level_of(LowbitKind kind, int32_t bits, int32_t code, int32_t zero, const int8_t* table) {
  switch (kind) {
    case LowbitKind::kAffine:
      return code - zero;
    case LowbitKind::kLevels:
      return table[code];
    default:
      return code - (1 << (bits - 1));
  }
}

template <class T>
T* section(void* packed, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<uint8_t*>(packed) + offset);
}
template <class T>
const T* section(const void* packed, int64_t offset) {
  return reinterpret_cast<const T*>(static_cast<const uint8_t*>(packed) + offset);
}

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

void pack_columns(const LowbitWeight& w, const LowbitHeader& h, void* packed) {
  const LowbitGeometry g = lowbit_geometry(h);
  auto* panels = section<uint8_t>(packed, h.codes_offset);
  for (int64_t o = 0; o < h.out_features; ++o) {
    const int64_t p = o / kLowbitColumns, n = o % kLowbitColumns;
    const int64_t width = lowbit_width(h, p);
    const int8_t* table = w.levels == nullptr ? nullptr : w.levels + (p << h.bits);
    for (int64_t i = 0; i < h.groups; ++i) {
      uint8_t* words = panels + group_start(h, g, p, i);
      uint8_t* codes = words + width * g.word_bytes;
      const int32_t zero = w.kind == LowbitKind::kAffine ? w.zero_point[o * h.groups + i] : 0;
      const uint8_t* from = w.codes + o * h.in_features + i * g.group;
      int64_t sum = 0;
      for (int64_t k = 0; k < group_inputs(h, i); ++k) {
        const int32_t level = level_of(w.kind, h.bits, from[k], zero, table);
        sum += level;
        if (g.stored == 8) {
          codes[(k / 4 * width + n) * 4 + k % 4] = static_cast<uint8_t>(level);
        } else {
          put_packed_code(codes, width, g.stored, k, n, from[k]);
        }
      }
      const uint32_t scale = bits_of(w.scale[o * h.groups + i]);
      if (g.wide) {
        const auto wide_sum = static_cast<int32_t>(sum);  // 128 * k < 2^31 for k < 2^24
        std::memcpy(words + 4 * n, &scale, 4);
        std::memcpy(words + 4 * (width + n), &wide_sum, 4);
      } else {
        const uint32_t word = (scale & 0xffff0000u) | static_cast<uint16_t>(sum);
        std::memcpy(words + 4 * n, &word, 4);
      }
      if (w.kind == LowbitKind::kAffine) {
        words[(g.wide ? 8 : 4) * width + n] = static_cast<uint8_t>(zero);
      }
    }
  }
  if (w.bias != nullptr && h.out_features > 0) {
    std::memcpy(section<float>(packed, h.bias_offset), w.bias,
                static_cast<size_t>(h.out_features) * sizeof(float));
  }
}

void pack_rows(const LowbitWeight& w, const LowbitHeader& h, void* packed) {
  const int64_t row = bit_bytes(h.in_features, h.bits);
  for (int64_t o = 0; o < h.out_features; ++o) {
    // put_bits keeps the low bits of each code: signed or not is the same.
    put_bits(reinterpret_cast<const int8_t*>(w.codes) + o * h.in_features, h.in_features, h.bits,
             section<uint8_t>(packed, h.codes_offset) + o * row);
  }
  for (int64_t i = 0; i < h.out_features * h.groups; ++i) {
    if (h.group_size == 0) {
      section<float>(packed, h.scale_offset)[i] = w.scale[i];
    } else {
      section<uint16_t>(packed, h.scale_offset)[i] =
          static_cast<uint16_t>(bits_of(w.scale[i]) >> 16);
    }
    if (w.kind == LowbitKind::kAffine) {
      section<uint8_t>(packed, h.zero_offset)[i] = w.zero_point[i];
    }
  }
}

/// Code whose level is `level`: the smallest one.
uint8_t code_of(LowbitKind kind, int32_t bits, int32_t level, int32_t zero, const int8_t* table) {
  if (kind == LowbitKind::kAffine) return static_cast<uint8_t>(level + zero);
  if (kind == LowbitKind::kSymmetric) return static_cast<uint8_t>(level + (1 << (bits - 1)));
  for (int32_t code = 0; code < 1 << bits; ++code) {
    if (table[code] == level) return static_cast<uint8_t>(code);
  }
  return 0;
}

}  // namespace

int64_t lowbit_groups(int64_t in_features, int64_t group_size) {
  if (group_size == 0 || in_features <= group_size) return 1;
  return (in_features + group_size - 1) / group_size;
}

int64_t lowbit_bytes(const LowbitWeight& weight) {
  LowbitHeader h;
  return make_header(weight, &h) ? h.total_bytes : -1;
}

void pack_lowbit(const LowbitWeight& weight, void* packed) {
  LowbitHeader h;
  if (!make_header(weight, &h)) return;
  std::memset(packed, 0, static_cast<size_t>(h.total_bytes));
  std::memcpy(packed, &h, sizeof h);
  if (weight.order == LowbitOrder::kRows) {
    pack_rows(weight, h, packed);
  } else {
    pack_columns(weight, h, packed);
  }
  if (weight.kind == LowbitKind::kLevels && h.out_features > 0) {
    const int64_t tables = (h.out_features + kLowbitColumns - 1) / kLowbitColumns;
    std::memcpy(section<int8_t>(packed, h.levels_offset), weight.levels,
                static_cast<size_t>(tables << h.bits));
  }
}

void unpack_lowbit(const void* packed, uint8_t* codes, float* scale, uint8_t* zero_point,
                   int8_t* levels, float* bias) {
  LowbitHeader h;
  std::memcpy(&h, packed, sizeof h);
  const auto kind = static_cast<LowbitKind>(h.kind);
  const bool rows = h.order == static_cast<int32_t>(LowbitOrder::kRows);
  const bool affine = kind == LowbitKind::kAffine;
  const auto* tables = section<int8_t>(packed, h.levels_offset);
  const auto* first = section<uint8_t>(packed, h.codes_offset);
  const LowbitGeometry g = lowbit_geometry(h);
  for (int64_t o = 0; o < h.out_features; ++o) {
    const int64_t p = o / kLowbitColumns, n = o % kLowbitColumns;
    const int64_t width = lowbit_width(h, p);
    if (rows && codes != nullptr) {
      uint8_t* to = codes + o * h.in_features;
      get_bits(first + o * bit_bytes(h.in_features, h.bits), h.in_features, h.bits,
               reinterpret_cast<int8_t*>(to));
      const auto mask = static_cast<uint8_t>((1 << h.bits) - 1);
      for (int64_t k = 0; k < h.in_features; ++k) to[k] &= mask;
    }
    for (int64_t i = 0; i < h.groups; ++i) {
      const int64_t at = o * h.groups + i;
      float group_scale;
      int32_t zero = 0;
      if (rows) {
        group_scale = h.group_size == 0
                          ? section<float>(packed, h.scale_offset)[at]
                          : float_of(uint32_t{section<uint16_t>(packed, h.scale_offset)[at]} << 16);
        if (affine) zero = section<uint8_t>(packed, h.zero_offset)[at];
      } else {
        const uint8_t* words = first + group_start(h, g, p, i);
        const uint8_t* group_codes = words + width * g.word_bytes;
        group_scale = group_word(words, width, g.wide, n).scale;
        if (affine) zero = words[(g.wide ? 8 : 4) * width + n];
        for (int64_t k = 0; codes != nullptr && k < group_inputs(h, i); ++k) {
          uint8_t* to = codes + o * h.in_features + i * g.group + k;
          if (g.stored == 8) {
            const auto level = static_cast<int8_t>(group_codes[(k / 4 * width + n) * 4 + k % 4]);
            *to = code_of(kind, h.bits, level, zero, tables + (p << h.bits));
          } else {
            *to = static_cast<uint8_t>(packed_code(group_codes, width, g.stored, k, n));
          }
        }
      }
      if (scale != nullptr) scale[at] = group_scale;
      if (zero_point != nullptr && affine) zero_point[at] = static_cast<uint8_t>(zero);
    }
    if (bias != nullptr && !rows) bias[o] = section<float>(packed, h.bias_offset)[o];
  }
  if (levels != nullptr && kind == LowbitKind::kLevels && h.out_features > 0) {
    std::memcpy(levels, tables,
                static_cast<size_t>((h.out_features + kLowbitColumns - 1) / kLowbitColumns)
                    << h.bits);
  }
}

void dequantize_lowbit(const void* packed, float* weight) {
  const LowbitHeader& h = *static_cast<const LowbitHeader*>(packed);
  const auto kind = static_cast<LowbitKind>(h.kind);
  const int64_t tables = (h.out_features + kLowbitColumns - 1) / kLowbitColumns;
  std::vector<uint8_t> codes(static_cast<size_t>(h.out_features * h.in_features));
  std::vector<float> scale(static_cast<size_t>(h.out_features * h.groups));
  std::vector<uint8_t> zero(kind == LowbitKind::kAffine ? scale.size() : 0);
  std::vector<int8_t> levels(kind == LowbitKind::kLevels ? static_cast<size_t>(tables << h.bits)
                                                         : 0);
  unpack_lowbit(packed, codes.data(), scale.data(), zero.data(), levels.data(), nullptr);
  const int64_t group = lowbit_geometry(h).group;
  for (int64_t o = 0; o < h.out_features; ++o) {
    const int8_t* table = levels.empty() ? nullptr : levels.data() + (o / kLowbitColumns << h.bits);
    for (int64_t k = 0; k < h.in_features; ++k) {
      const int64_t g = o * h.groups + k / group, i = o * h.in_features + k;
      const int32_t level = level_of(kind, h.bits, codes[static_cast<size_t>(i)],
                                     zero.empty() ? 0 : zero[static_cast<size_t>(g)], table);
      weight[i] = static_cast<float>(level) * scale[static_cast<size_t>(g)];
    }
  }
}

bool check_lowbit(const void* packed, int64_t bytes) {
  if (bytes < kHeaderBytes) return false;
  LowbitHeader h;
  std::memcpy(&h, packed, sizeof h);
  const auto in = [](int64_t v, int64_t low, int64_t high) { return low <= v && v <= high; };
  if (h.magic != kLowbitMagic || !in(h.order, 0, 1) || !in(h.kind, 0, 2) || !in(h.bits, 2, 8) ||
      !in(h.out_features, 0, kLargestFeatures) || !in(h.in_features, 0, kLargestFeatures) ||
      !in(h.group_size, 0, kLargestGroup) || h.group_size % 16 != 0) {
    return false;
  }
  LowbitWeight w{};
  w.order = static_cast<LowbitOrder>(h.order);
  w.kind = static_cast<LowbitKind>(h.kind);
  w.bits = h.bits;
  w.out_features = h.out_features;
  w.in_features = h.in_features;
  w.group_size = h.group_size;
  LowbitHeader expected;
  return make_header(w, &expected) && std::memcmp(&h, &expected, sizeof h) == 0 &&
         h.total_bytes <= bytes;
}

}  // namespace octavo

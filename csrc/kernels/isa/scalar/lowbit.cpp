// Products with packed low-bit weights and look-ups in plain loops: the specification that every
// other ISA equals bit for bit. Filled into the scalar row by table.cpp; called by lowbit.cpp.
#include "../../kernel_table.h"

namespace octavo::scalar {
namespace {

/// Level of input k of column n of a group.
int32_t level_of(const LowbitPanel& p, const uint8_t* words, int64_t k, int64_t n) {
  const uint8_t* codes = words + p.width * p.word_bytes;
  if (p.stored == 8) return static_cast<int8_t>(codes[(k / 4 * p.width + n) * 4 + k % 4]);
  const auto code = static_cast<int32_t>(packed_code(codes, p.width, p.stored, k, n));
  switch (p.kind) {
    case LowbitKind::kAffine:
      return code - words[(p.wide ? 8 : 4) * p.width + n];
    case LowbitKind::kLevels:
      return p.levels[code];
    default:
      return code - p.zero;
  }
}

int64_t codes_of(const LowbitPanel& p, int64_t g) {
  return g + 1 < p.count ? p.group_codes : p.last_codes;
}

/// The sum of activations less their zero point times levels. Padded levels may be anything:
/// activations there are 0 in every form.
void multiply_packed(const PackedJob& job) {
  const LowbitPanel& p = job.panel;
  for (int64_t m = 0; m < job.rows; ++m) {
    const int8_t* row = job.a + m * job.pitch;
    const auto offset = static_cast<uint32_t>(128 - job.row_zero[m]);
    for (int64_t n = 0; n < p.n; ++n) {
      const int8_t* a = row;
      float* acc = job.acc + m * kLowbitColumns + n;
      float f = job.first ? 0.0f : *acc;
      for (int64_t g = 0; g < p.count; ++g) {
        const uint8_t* words = p.groups + g * p.group_step;
        const GroupWord word = group_word(words, p.width, p.wide, n);
        uint32_t sum = offset * static_cast<uint32_t>(word.sum);
        for (int64_t k = 0; k < codes_of(p, g); ++k, ++a) {
          sum += static_cast<uint32_t>(int32_t{*a} * level_of(p, words, k, n));
        }
        f = __builtin_fmaf(static_cast<float>(static_cast<int32_t>(sum)), word.scale, f);
      }
      if (job.last) {
        job.y[m * job.ldy + n] = __builtin_fmaf(f, job.row_scale[m], job.bias[n]);
      } else {
        *acc = f;
      }
    }
  }
}

void unpack_levels(const LowbitPanel& p, int8_t* levels) {
  for (int64_t g = 0; g < p.count; ++g) {
    const uint8_t* words = p.groups + g * p.group_step;
    for (int64_t k = 0; k < codes_of(p, g); ++k) {
      for (int64_t n = 0; n < p.width; ++n) {
        levels[(k / 4 * p.width + n) * 4 + k % 4] = static_cast<int8_t>(level_of(p, words, k, n));
      }
    }
    levels += codes_of(p, g) * p.width;
  }
}

void gemm_u8s8_groups(const GroupJob& job) {
  const LowbitPanel& p = job.panel;
  for (int64_t m = 0; m < job.rows; ++m) {
    for (int64_t n = 0; n < p.n; ++n) {
      const uint8_t* a = job.a + m * job.pitch;
      float* acc = job.acc + m * kLowbitColumns + n;
      float f = job.first ? 0.0f : *acc;
      for (int64_t g = 0; g < p.count; ++g) {
        const GroupWord word = group_word(p.groups + g * p.group_step, p.width, p.wide, n);
        const int8_t* b = job.b + g * job.b_step + n * 4;
        uint32_t sum =
            0u - static_cast<uint32_t>(job.row_zero[m]) * static_cast<uint32_t>(word.sum);
        for (int64_t k = 0; k < codes_of(p, g); ++k, ++a) {
          sum += static_cast<uint32_t>(int32_t{*a} * b[k / 4 * p.width * 4 + k % 4]);
        }
        f = __builtin_fmaf(static_cast<float>(static_cast<int32_t>(sum)), word.scale, f);
      }
      if (job.last) {
        job.y[m * job.ldy + n] = __builtin_fmaf(f, job.row_scale[m], job.bias[n]);
      } else {
        *acc = f;
      }
    }
  }
}

void gemm_f32s8_groups(const GroupJob& job) {
  const LowbitPanel& p = job.panel;
  for (int64_t m = 0; m < job.rows; ++m) {
    for (int64_t n = 0; n < p.n; ++n) {
      const float* x = job.x + m * job.ldx;
      float* acc = job.acc + m * kLowbitColumns + n;
      float f = job.first ? 0.0f : *acc;
      for (int64_t g = 0; g < p.count; ++g) {
        const GroupWord word = group_word(p.groups + g * p.group_step, p.width, p.wide, n);
        const int8_t* b = job.b + g * job.b_step + n * 4;
        const int64_t inputs = g + 1 < p.count ? job.group : job.last_group;
        float sum = 0.0f;
        for (int64_t k = 0; k < inputs; ++k, ++x) {
          sum = __builtin_fmaf(*x, static_cast<float>(b[k / 4 * p.width * 4 + k % 4]), sum);
        }
        f = __builtin_fmaf(sum, word.scale, f);
      }
      if (job.last) {
        job.y[m * job.ldy + n] = f + job.bias[n];
      } else {
        *acc = f;
      }
    }
  }
}

int32_t flip_u8_s8(uint8_t* codes, int64_t count) {
  int32_t sum = 0;
  for (int64_t k = 0; k < count; ++k) {
    codes[k] ^= 128;
    sum += static_cast<int8_t>(codes[k]);
  }
  return sum;
}

void dequantize_row(const RowJob& job) {
  const uint32_t mask = (1u << job.bits) - 1;
  for (int64_t i = 0; i < job.count; ++i) {
    const int64_t bit = i * job.bits, byte = bit / 8, last = (bit + job.bits - 1) / 8;
    const uint32_t pair = job.codes[byte] | uint32_t{job.codes[last]} << (last > byte ? 8 : 0);
    const auto code = static_cast<int32_t>(pair >> (bit % 8) & mask);
    const int64_t g = i / job.group;
    int32_t level = code - (1 << (job.bits - 1));
    if (job.kind == LowbitKind::kAffine) level = code - job.zero[g];
    if (job.kind == LowbitKind::kLevels) level = job.levels[code];
    float scale = 0.0f;
    if (job.wide_scale != nullptr) {
      scale = *job.wide_scale;
    } else {
      const uint32_t bits = uint32_t{job.scale[g]} << 16;
      __builtin_memcpy(&scale, &bits, 4);
    }
    job.y[i] = static_cast<float>(level) * scale;
  }
}

}  // namespace

void fill_lowbit(LowbitTable& table) {
  table.tile_rows = 1;
  table.packed_rows = 4;
  table.packed_rows_levels = 4;
  table.multiply_packed = table.multiply_packed_levels = multiply_packed;
  table.unpack_levels = unpack_levels;
  table.gemm_u8s8_groups = gemm_u8s8_groups;
  table.gemm_f32s8_groups = gemm_f32s8_groups;
  table.flip_u8_s8 = flip_u8_s8;
  table.dequantize_row = dequantize_row;
}

}  // namespace octavo::scalar

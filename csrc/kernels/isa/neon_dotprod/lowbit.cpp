// Products with packed low-bit weights by sdot. Filled into the row neon_dotprod by table.cpp;
// called by kernels/lowbit.cpp. Codes below 16 are signed bytes too, and levels of a table are
// signed, so packed codes are multiplied directly for any number of rows. Products with unpacked
// levels get 5 to 8 bits only, whose padding is zero.
#include "../../kernel_table.h"
#include "codes.h"

namespace octavo::neon_dotprod {
namespace {

#define OCTAVO_INLINE inline __attribute__((always_inline))

constexpr int kVectors = 4;  // of 4 columns: a tile's width

constexpr int planes_of(int stored) { return stored == 3 ? 3 : 1; }
constexpr int quads_of(int stored) { return stored == 3 ? 8 : 8 / stored; }

/// Codes of quad Q of a unit.
template <int kBits, int Q>
OCTAVO_INLINE uint8x16_t code_quad(const uint8x16_t* p) {
  const uint8x16_t mask = vdupq_n_u8((1 << kBits) - 1);
  if constexpr (kBits != 3) {
    if constexpr (Q == 0) return vandq_u8(p[0], mask);
    return vandq_u8(vshrq_n_u8(p[0], Q == 0 ? 1 : Q * kBits), mask);
  } else if constexpr (Q < 6) {
    if constexpr (Q % 2 == 0) return vandq_u8(p[Q / 2], mask);
    return vandq_u8(vshrq_n_u8(p[Q / 2], 3), mask);
  } else {
    // Upper bits at 6..7 of plane A or B, the lowest at bit Q of plane C.
    const uint8x16_t upper = vshlq_n_u8(vshrq_n_u8(p[Q - 6], 6), 1);
    return vorrq_u8(upper, vandq_u8(vshrq_n_u8(p[2], Q), vdupq_n_u8(1)));
  }
}

/// Signed operands: codes themselves, or levels of a table.
template <int kBits, bool kTable>
struct Codec {
  static constexpr int kStored = kBits;
  OCTAVO_INLINE explicit Codec(const LowbitPanel& p) : table(vdupq_n_s8(0)) {
    if constexpr (kTable) {
      int8_t entries[16];
      for (int i = 0; i < 16; ++i) entries[i] = p.levels[i & ((1 << kBits) - 1)];
      table = vld1q_s8(entries);
    }
  }
  template <int Q>
  OCTAVO_INLINE int8x16_t quad(const uint8x16_t* p) const {
    const uint8x16_t code = code_quad<kBits, Q>(p);
    if constexpr (kTable) return vqtbl1q_s8(table, code);
    return vreinterpretq_s8_u8(code);
  }
  int8x16_t table;
};

OCTAVO_INLINE int64_t codes_of(const LowbitPanel& p, int64_t g) {
  return g + 1 < p.count ? p.group_codes : p.last_codes;
}

/// Scales of 4 columns; adds factor times the level sums there to `sum`.
OCTAVO_INLINE float32x4_t take_words(const uint8_t* words, const LowbitPanel& p, int64_t column,
                                     int32_t factor, int32x4_t& sum) {
  const uint32x4_t word = vreinterpretq_u32_u8(vld1q_u8(words + 4 * column));
  if (p.wide) {
    const uint8x16_t sums = vld1q_u8(words + 4 * (p.width + column));
    sum = vmlaq_n_s32(sum, vreinterpretq_s32_u8(sums), factor);
    return vreinterpretq_f32_u32(word);
  }
  const int32x4_t sums = vshrq_n_s32(vreinterpretq_s32_u32(vshlq_n_u32(word, 16)), 16);
  sum = vmlaq_n_s32(sum, sums, factor);
  return vreinterpretq_f32_u32(vandq_u32(word, vdupq_n_u32(0xffff0000u)));
}

/// Zero points of 4 columns.
OCTAVO_INLINE int32x4_t zeros_of(const LowbitPanel& p, const uint8_t* words, int64_t column) {
  uint32_t four;
  __builtin_memcpy(&four, words + (p.wide ? 8 : 4) * p.width + column, 4);
  const uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
}

/// Float sums of M rows x 16 columns: reads their start, writes their results.
template <int M>
struct FloatSums {
  template <class Job>
  OCTAVO_INLINE FloatSums(const Job& job, int64_t row, int64_t column) {
    for (int m = 0; m < M; ++m) {
      const float* from = job.acc + (row + m) * kLowbitColumns + column;
      for (int v = 0; v < kVectors; ++v) {
        f[m].v[v] = job.first ? vdupq_n_f32(0.0f) : vld1q_f32(from + 4 * v);
      }
    }
  }
  /// y = finish(f, bias, row), or back to acc.
  template <class Job, class Finish>
  OCTAVO_INLINE void store(const Job& job, int64_t row, int64_t column, Finish&& finish) {
    for (int m = 0; m < M; ++m) {
      if (!job.last) {
        store_floats(job.acc + (row + m) * kLowbitColumns + column, f[m], 16);
        continue;
      }
      const int64_t columns = job.panel.n - column;
      const Floats bias = load_floats(job.bias + column, columns);
      for (int v = 0; v < kVectors; ++v) f[m].v[v] = finish(f[m].v[v], bias.v[v], row + m);
      store_floats(job.y + (row + m) * job.ldy + column, f[m], columns);
    }
  }
  Floats f[M];
};

// ---- packed codes

template <int Q, class C, int M>
OCTAVO_INLINE void multiply_quads(int32x4_t (&sum)[M][kVectors], const C& codec,
                                  const uint8x16_t (&p)[kVectors][planes_of(C::kStored)],
                                  const int8_t* const (&a)[M]) {
  if constexpr (Q < quads_of(C::kStored)) {
    int8x16_t u[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) u[v] = codec.template quad<Q>(p[v]);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      int32_t quad;
      __builtin_memcpy(&quad, a[m] + 4 * Q, 4);
      const int8x16_t s = vreinterpretq_s8_s32(vdupq_n_s32(quad));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[m][v] = vdotq_s32(sum[m][v], u[v], s);
    }
    multiply_quads<Q + 1, C, M>(sum, codec, p, a);
  }
}

template <class C, int M>
void packed_tile(const PackedJob& job, int64_t row, int64_t column) {
  constexpr int kUnit = 4 * quads_of(C::kStored), kPlanes = planes_of(C::kStored);
  const LowbitPanel& panel = job.panel;
  const C codec(panel);
  const int64_t step = panel.width * 4;
  const int8_t* a[M];
  for (int m = 0; m < M; ++m) a[m] = job.a + (row + m) * job.pitch;
  FloatSums<M> sums(job, row, column);
  const uint8_t* words = panel.groups;
  for (int64_t g = 0; g < panel.count; ++g, words += panel.group_step) {
    const uint8_t* codes = words + panel.width * panel.word_bytes + column * 4;
    int32x4_t sum[M][kVectors];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      // Levels of a table are signed here: nothing to correct.
      const int32_t start =
          panel.kind == LowbitKind::kSymmetric ? job.a_start[(row + m) * job.a_start_pitch + g] : 0;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[m][v] = vdupq_n_s32(start);
    }
    for (int64_t k = codes_of(panel, g); k > 0; k -= kUnit, codes += kPlanes * step) {
      uint8x16_t p[kVectors][kPlanes];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
        for (int i = 0; i < kPlanes; ++i) p[v][i] = vld1q_u8(codes + i * step + 16 * v);
      }
      multiply_quads<0, C, M>(sum, codec, p, a);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) a[m] += kUnit;
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t n = column + 4 * v;
        if (panel.kind == LowbitKind::kAffine) {
          sum[m][v] = vmlaq_n_s32(sum[m][v], zeros_of(panel, words, n),
                                  job.a_start[(row + m) * job.a_start_pitch + g]);
        }
        const float32x4_t scale =
            take_words(words, panel, n, 128 - job.row_zero[row + m], sum[m][v]);
        sums.f[m].v[v] = vfmaq_f32(sums.f[m].v[v], vcvtq_f32_s32(sum[m][v]), scale);
      }
    }
  }
  sums.store(job, row, column, [&](float32x4_t f, float32x4_t bias, int64_t m) {
    return vfmaq_f32(bias, f, vdupq_n_f32(job.row_scale[m]));
  });
}

template <class C, int M>
void packed_rows(const PackedJob& job, int64_t row) {
  for (int64_t column = 0; column < job.panel.width; column += 16) {
    packed_tile<C, M>(job, row, column);
  }
}

template <class C>
void packed_panel(const PackedJob& job) {
  int64_t row = 0;
  for (; row + 3 <= job.rows; row += 3) packed_rows<C, 3>(job, row);
  if (row + 2 == job.rows) packed_rows<C, 2>(job, row);
  if (row + 1 == job.rows) packed_rows<C, 1>(job, row);
}

template <bool kTable>
void multiply_packed(const PackedJob& job) {
  if (job.panel.stored == 4) packed_panel<Codec<4, kTable>>(job);
  if (job.panel.stored == 3) packed_panel<Codec<3, kTable>>(job);
  if (job.panel.stored == 2) packed_panel<Codec<2, kTable>>(job);
}

// ---- unpacking, for float activations

template <int Q, class C>
OCTAVO_INLINE void unpack_quads(const C& codec, const uint8x16_t* p, int8x16_t zero, int8_t* to,
                                int64_t step) {
  if constexpr (Q < quads_of(C::kStored)) {
    vst1q_s8(to + Q * step, vsubq_s8(codec.template quad<Q>(p), zero));
    unpack_quads<Q + 1>(codec, p, zero, to, step);
  }
}

template <class C>
void unpack_with(const LowbitPanel& panel, int32_t constant_zero, int8_t* levels) {
  constexpr int kUnit = 4 * quads_of(C::kStored), kPlanes = planes_of(C::kStored);
  const C codec(panel);
  const int64_t step = panel.width * 4;
  const uint8_t* words = panel.groups;
  for (int64_t g = 0; g < panel.count; ++g, words += panel.group_step) {
    const int64_t length = codes_of(panel, g);
    for (int64_t column = 0; column < panel.width; column += 4) {
      int8x16_t zero = vdupq_n_s8(static_cast<int8_t>(constant_zero));
      if (panel.kind == LowbitKind::kAffine) {
        const int32x4_t zeros = zeros_of(panel, words, column);
        zero = vreinterpretq_s8_s32(vmulq_n_s32(zeros, 0x01010101));
      }
      const uint8_t* codes = words + panel.width * panel.word_bytes + column * 4;
      int8_t* to = levels + column * 4;
      for (int64_t k = 0; k < length; k += kUnit, codes += kPlanes * step) {
        uint8x16_t p[kPlanes];
        for (int i = 0; i < kPlanes; ++i) p[i] = vld1q_u8(codes + i * step);
        unpack_quads<0>(codec, p, zero, to, step);
        to += kUnit / 4 * step;
      }
    }
    levels += length * panel.width;
  }
}

template <int kBits>
void unpack_stored(const LowbitPanel& panel, int8_t* levels) {
  if (panel.kind == LowbitKind::kLevels) {
    unpack_with<Codec<kBits, true>>(panel, 0, levels);
  } else {
    unpack_with<Codec<kBits, false>>(panel, panel.zero, levels);
  }
}

void unpack_levels(const LowbitPanel& panel, int8_t* levels) {
  if (panel.stored == 4) unpack_stored<4>(panel, levels);
  if (panel.stored == 3) unpack_stored<3>(panel, levels);
  if (panel.stored == 2) unpack_stored<2>(panel, levels);
}

// ---- levels in bytes

template <int M>
void integer_tile(const GroupJob& job, int64_t row, int64_t column) {
  const LowbitPanel& panel = job.panel;
  const int64_t step = panel.width * 4;
  const uint8_t* a[M];
  for (int m = 0; m < M; ++m) a[m] = job.a + (row + m) * job.pitch;
  FloatSums<M> sums(job, row, column);
  const int8_t* group = job.b + column * 4;
  const uint8_t* words = panel.groups;
  for (int64_t g = 0; g < panel.count; ++g, words += panel.group_step, group += job.b_step) {
    int32x4_t sum[M][kVectors];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[m][v] = vdupq_n_s32(0);
    }
    const int8_t* b = group;
    for (int64_t k = codes_of(panel, g); k > 0; k -= 4, b += step) {
      int8x16_t w[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) w[v] = vld1q_s8(b + 16 * v);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        uint32_t quad;
        __builtin_memcpy(&quad, a[m], 4);
        const int8x16_t s = vreinterpretq_s8_u32(vdupq_n_u32(quad ^ 0x80808080u));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[m][v] = vdotq_s32(sum[m][v], w[v], s);
        a[m] += 4;
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const float32x4_t scale =
            take_words(words, panel, column + 4 * v, 128 - job.row_zero[row + m], sum[m][v]);
        sums.f[m].v[v] = vfmaq_f32(sums.f[m].v[v], vcvtq_f32_s32(sum[m][v]), scale);
      }
    }
  }
  sums.store(job, row, column, [&](float32x4_t f, float32x4_t bias, int64_t m) {
    return vfmaq_f32(bias, f, vdupq_n_f32(job.row_scale[m]));
  });
}

/// Products of input J of a quad.
template <int J, int M>
OCTAVO_INLINE void multiply_input(float32x4_t (&sum)[M][kVectors], const int32x4_t (&w)[kVectors],
                                  const float* const (&x)[M]) {
  float32x4_t level[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const int32x4_t top = vshlq_n_s32(w[v], 24 - 8 * J);
    level[v] = vcvtq_f32_s32(vshrq_n_s32(top, 24));
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    const float32x4_t value = vdupq_n_f32(x[m][J]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[m][v] = vfmaq_f32(sum[m][v], level[v], value);
  }
}

template <int M>
void float_tile(const GroupJob& job, int64_t row, int64_t column) {
  const LowbitPanel& panel = job.panel;
  const int64_t step = panel.width * 4;
  const float* x[M];
  for (int m = 0; m < M; ++m) x[m] = job.x + (row + m) * job.ldx;
  FloatSums<M> sums(job, row, column);
  const int8_t* group = job.b + column * 4;
  const uint8_t* words = panel.groups;
  for (int64_t g = 0; g < panel.count; ++g, words += panel.group_step, group += job.b_step) {
    float32x4_t sum[M][kVectors];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[m][v] = vdupq_n_f32(0.0f);
    }
    const int8_t* b = group;
    int64_t left = g + 1 < panel.count ? job.group : job.last_group;
    for (; left > 0; left -= 4, b += step) {
      int32x4_t w[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) w[v] = vreinterpretq_s32_s8(vld1q_s8(b + 16 * v));
      multiply_input<0, M>(sum, w, x);
      if (left > 1) multiply_input<1, M>(sum, w, x);
      if (left > 2) multiply_input<2, M>(sum, w, x);
      if (left > 3) multiply_input<3, M>(sum, w, x);
      if (left < 4) break;
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) x[m] += 4;
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        int32x4_t none = vdupq_n_s32(0);
        const float32x4_t scale = take_words(words, panel, column + 4 * v, 0, none);
        sums.f[m].v[v] = vfmaq_f32(sums.f[m].v[v], sum[m][v], scale);
      }
    }
  }
  sums.store(job, row, column,
             [](float32x4_t f, float32x4_t bias, int64_t) { return vaddq_f32(f, bias); });
}

using Tile = void (*)(const GroupJob&, int64_t row, int64_t column);

void sweep(const GroupJob& job, const Tile (&tiles)[4]) {
  for (int64_t row = 0; row < job.rows;) {
    const int64_t m = job.rows - row < 3 ? job.rows - row : 3;
    for (int64_t column = 0; column < job.panel.width; column += 16) tiles[m](job, row, column);
    row += m;
  }
}

void gemm_u8s8_groups(const GroupJob& job) {
  sweep(job, {nullptr, integer_tile<1>, integer_tile<2>, integer_tile<3>});
}
void gemm_f32s8_groups(const GroupJob& job) {
  sweep(job, {nullptr, float_tile<1>, float_tile<2>, float_tile<3>});
}

int32_t flip_u8_s8(uint8_t* codes, int64_t count) {
  const uint8x16_t flip = vdupq_n_u8(128);
  const int8x16_t ones = vdupq_n_s8(1);
  int32x4_t sum = vdupq_n_s32(0);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const uint8x16_t flipped = veorq_u8(vld1q_u8(codes + i), flip);
    sum = vdotq_s32(sum, vreinterpretq_s8_u8(flipped), ones);
    vst1q_u8(codes + i, flipped);
  }
  int32_t total = vaddvq_s32(sum);
  for (; i < count; ++i) {
    codes[i] ^= 128;
    total += static_cast<int8_t>(codes[i]);
  }
  return total;
}

// ---- look-ups

/// Where sixteen codes of `bits` lie in their 2 bits bytes: each in the word of the byte where it
/// begins and the next one, `shift` bits up.
struct CodePlaces {
  explicit CodePlaces(int32_t bits) {
    uint8_t at[32];
    int16_t up[16];
    for (int i = 0; i < 16; ++i) {
      at[2 * i] = static_cast<uint8_t>(i * bits / 8);
      at[2 * i + 1] = static_cast<uint8_t>(i * bits / 8 + 1);
      up[i] = static_cast<int16_t>(-(i * bits % 8));
    }
    for (int i = 0; i < 2; ++i) {
      word[i] = vld1q_u8(at + 16 * i);
      shift[i] = vld1q_s16(up + 8 * i);
    }
    mask = vdupq_n_u16(static_cast<uint16_t>((1 << bits) - 1));
  }
  OCTAVO_INLINE uint8x16_t codes(uint8x16_t packed) const {
    uint16x8_t code[2];
    for (int i = 0; i < 2; ++i) {
      const uint16x8_t wide = vreinterpretq_u16_u8(vqtbl1q_u8(packed, word[i]));
      code[i] = vandq_u16(vshlq_u16(wide, shift[i]), mask);
    }
    return vmovn_high_u16(vmovn_u16(code[0]), code[1]);
  }
  uint8x16_t word[2];
  int16x8_t shift[2];
  uint16x8_t mask;
};

/// A table of 2^bits levels, in as many fours of registers as it takes.
struct LevelTable {
  LevelTable(const int8_t* levels, int32_t bits) : parts(bits <= 6 ? 1 : 1 << (bits - 6)) {
    int8_t all[256] = {};
    copy_some(all, levels, int64_t{1} << bits);
    for (int i = 0; i < parts; ++i) part[i] = vld1q_s8_x4(all + 64 * i);
  }
  OCTAVO_INLINE int8x16_t at(uint8x16_t code) const {
    int8x16_t level = vqtbl4q_s8(part[0], code);
    for (int i = 1; i < parts; ++i) {
      code = vsubq_u8(code, vdupq_n_u8(64));
      level = vqtbx4q_s8(level, part[i], code);
    }
    return level;
  }
  int parts;
  int8x16x4_t part[4];
};

/// Sixteen levels less `zero`, times scale.
OCTAVO_INLINE Floats scaled(int8x16_t level, int16x8_t zero, float scale) {
  const int16x8_t low = vsubq_s16(vmovl_s8(vget_low_s8(level)), zero);
  const int16x8_t high = vsubq_s16(vmovl_high_s8(level), zero);
  const int32x4_t wide[4] = {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low),
                             vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)};
  Floats f;
  for (int i = 0; i < 4; ++i) f.v[i] = vmulq_n_f32(vcvtq_f32_s32(wide[i]), scale);
  return f;
}

/// Sixteen codes at a time, which begin at bytes and lie in one group.
void dequantize_row(const RowJob& job) {
  static constexpr int8_t none[256] = {};
  const bool table = job.kind == LowbitKind::kLevels;
  const CodePlaces places(job.bits);
  const LevelTable levels(table ? job.levels : none, job.bits);
  // Codes of 8 bits become levels by the flip of their sign bit, narrower ones by their zero point.
  const uint8x16_t flip = vdupq_n_u8(job.bits == 8 ? 128 : 0);
  const int16_t middle = job.bits == 8 ? 0 : static_cast<int16_t>(1 << (job.bits - 1));
  for (int64_t first = 0; first < job.count; first += job.group) {
    const int64_t g = first / job.group, left = job.count - first;
    const int64_t count = left < job.group ? left : job.group;
    float scale;
    if (job.wide_scale != nullptr) {
      scale = *job.wide_scale;
    } else {
      const uint32_t bits = uint32_t{job.scale[g]} << 16;
      __builtin_memcpy(&scale, &bits, 4);
    }
    const int16_t zero = table                             ? int16_t{0}
                         : job.kind == LowbitKind::kAffine ? static_cast<int16_t>(job.zero[g])
                                                           : middle;
    const uint8_t* packed = job.codes + first * job.bits / 8;
    float* y = job.y + first;
    for (int64_t i = 0; i < count; i += 16, packed += 2 * job.bits) {
      const int64_t columns = count - i < 16 ? count - i : 16;
      const uint8x16_t code = places.codes(load_codes(packed, (columns * job.bits + 7) / 8));
      const int8x16_t level = table ? levels.at(code) : vreinterpretq_s8_u8(veorq_u8(code, flip));
      store_floats(y + i, scaled(level, vdupq_n_s16(zero), scale), columns);
    }
  }
}

}  // namespace

void fill_lowbit(LowbitTable& table) {
  table.tile_rows = 3;
  table.packed_rows = table.packed_rows_levels = INT64_MAX;
  table.multiply_packed = multiply_packed<false>;
  table.multiply_packed_levels = multiply_packed<true>;
  table.unpack_levels = unpack_levels;
  table.gemm_u8s8_groups = gemm_u8s8_groups;
  table.gemm_f32s8_groups = gemm_f32s8_groups;
  table.flip_u8_s8 = flip_u8_s8;
  table.dequantize_row = dequantize_row;
}

}  // namespace octavo::neon_dotprod

// Products with unpacked low-bit levels by AMX tiles: 16 rows x 64 columns, a group's integer sums
// in four tile registers, float sums in cache. Filled into the row amx_int8 by table.cpp; called by
// kernels/lowbit.cpp. Few rows go through avx512_vnni's packed products.
#include "gemm.h"
#include "work.h"

namespace octavo::OCTAVO_AMX {
namespace {

/// Registers 0 .. 3 hold sums, 4 and 6 a whole step of activations and levels, 5 and 7 the `rest`
/// of a group's codes. Sixteen rows always: buffers of activations have them.
void configure(int64_t rest) {
  TileConfig config{};
  config.palette = 1;
  const auto set = [&](int tile, int64_t rows, int64_t bytes) {
    config.rows[tile] = static_cast<uint8_t>(rows);
    config.bytes[tile] = static_cast<uint16_t>(bytes);
  };
  for (int tile = 0; tile < 5; ++tile) set(tile, 16, 64);
  set(6, 16, 64);
  if (rest > 0) {
    set(5, 16, rest);
    set(7, rest / 4, 64);
  }
  tile_configure(config);
}

/// The words of a group for T tiles of columns, and how its sums become floats.
template <int T, bool kWide>
class GroupWords {
 public:
  GroupWords(const LowbitPanel& panel, const uint8_t* words) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j) {
      word_[j] = _mm512_loadu_si512(words + 64 * j);
      scale_[j] = _mm512_castsi512_ps(kWide ? word_[j] : _mm512_and_si512(word_[j], upper));
      if constexpr (kWide) word_[j] = _mm512_loadu_si512(words + 4 * panel.width + 64 * j);
    }
  }

  /// Adds a row of sums to the row's float sums: f = fmaf(float(sum - zero * levels), scale, f).
  OCTAVO_INLINE void add_row(const TilePiece* pieces, int64_t row, int32_t zero, float* f) const {
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j) {
      __m512i sum = _mm512_load_si512(pieces[j].row[row]);
      if constexpr (kWide) {
        sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(word_[j], _mm512_set1_epi32(zero)));
      } else {
        // The sum of levels is a word's lower half; zero times the upper half, the scale, is 0.
        sum = _mm512_dpwssd_epi32(sum, word_[j], _mm512_set1_epi32(-zero & 0xffff));
      }
      const __m512 v = _mm512_load_ps(f + 16 * j);
      _mm512_store_ps(f + 16 * j, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale_[j], v));
    }
  }

 private:
  __m512i word_[T];
  __m512 scale_[T];
};

/// Rows times the groups of a panel of T tiles of columns, in units of one group and sixteen rows.
/// While a unit is multiplied, the sums of the unit before are stored in pieces, and those of the
/// unit before that are added to float sums: what a tile has just stored cannot be loaded at once.
template <int T, bool kWide>
class Groups {
 public:
  explicit Groups(const GroupJob& job) : job_(job), panel_(job.panel) {}

  /// Unpacked levels: all groups of sixteen rows, then the next rows.
  void by_rows() {
    for (int64_t row = 0; row < job_.rows; row += 16) {
      for (int64_t g = 0; g < panel_.count; ++g) {
        multiply({g, row}, {g, 0, codes_of(g)}, job_.b + g * job_.b_step);
      }
    }
    drain();
  }

  /// Packed levels: a part is unpacked while the part before is multiplied with all rows. A group
  /// has several parts only if there is one unit of rows, whose sums then stay in registers.
  void by_groups() {
    Part part = part_at(0, 0);
    if (part.codes > 0) unpack(part, levels_[0]);
    for (int64_t i = 0; part.codes > 0; ++i) {
      const bool ends = part.code + part.codes == codes_of(part.group);
      const Part next =
          ends ? part_at(part.group + 1, 0) : part_at(part.group, part.code + part.codes);
      if (next.codes > 0) unpack(next, levels_[(i + 1) & 1]);
      for (int64_t row = 0; row < job_.rows; row += 16) {
        multiply({part.group, row}, part, levels_[i & 1]);
      }
      part = next;
    }
    drain();
  }

 private:
  struct Unit {
    int64_t group, row;
  };

  /// Some codes of a group: what is unpacked at a time.
  struct Part {
    int64_t group, code, codes;
  };

  /// codes is 0 beyond the last group.
  Part part_at(int64_t group, int64_t code) const {
    if (group >= panel_.count) return {};
    const int64_t left = codes_of(group) - code;
    return {group, code, left < kFusedGroup ? left : kFusedGroup};
  }

  int64_t codes_of(int64_t g) const {
    return g + 1 < panel_.count ? panel_.group_codes : panel_.last_codes;
  }

  void unpack(const Part& part, int8_t* levels) {
    LowbitPanel one = panel_;
    one.groups += part.group * panel_.group_step;
    one.word_bytes += stored_bytes(panel_.stored, part.code);
    one.count = 1;
    one.last_codes = part.codes;
    job_.unpack(one, levels);
  }

  struct Nothing {
    OCTAVO_INLINE void some() {}
  };

  /// Adds the remaining sums of unit n, some rows at a time.
  class Rest {
   public:
    OCTAVO_INLINE Rest(const Groups& groups, int64_t n, int64_t quota)
        : unit_(groups.units_[n & 3]),
          words_(groups.panel_, groups.panel_.groups + unit_.group * groups.panel_.group_step),
          pieces_(groups.pieces_[n & 1]),
          zero_(groups.job_.row_zero + unit_.row),
          f_(groups.job_.acc + unit_.row * kLowbitColumns),
          quota_(quota) {
      const int64_t left = groups.job_.rows - unit_.row;
      end_ = n < groups.added_ ? 0 : left < 16 ? left : 16;
    }
    OCTAVO_INLINE void some() {
      for (int64_t k = 0; k < quota_ && row_ < end_; ++k) one();
    }
    OCTAVO_INLINE void all() {
      while (row_ < end_) one();
    }

   private:
    OCTAVO_INLINE void one() {
      words_.add_row(pieces_, row_, zero_[row_], f_ + row_ * kLowbitColumns);
      ++row_;
    }
    Unit unit_;
    GroupWords<T, kWide> words_;
    const TilePiece* pieces_;
    const int32_t* zero_;
    float* f_;
    int64_t row_ = 0, end_, quota_;
  };

  /// Products of tile columns from J on; kFirst: registers first store the sums of the unit before.
  template <int A, int B, bool kFirst, int J = 0, class R>
  OCTAVO_INLINE void columns(const int8_t* b, int64_t step, R& rest) {
    if constexpr (J < T) {
      tile_load<B>(b + 64 * J, step);
      if constexpr (kFirst) {
        if (in_registers_) tile_store<J>(pieces_[(n_ - 1) & 1][J]);
        tile_zero<J>();
      }
      tile_multiply<J, A, B>();
      rest.some();
      columns<A, B, kFirst, J + 1>(b, step, rest);
    }
  }

  /// Products of a part; kFirst: of its first step, the unit's first.
  template <bool kFirst, class R>
  OCTAVO_INLINE void products(const uint8_t* a, const int8_t* b, int64_t codes, R& rest) {
    const int64_t step = panel_.width * 4;
    int64_t k = 0;
    if (codes >= 64) {
      tile_load<4>(a, job_.pitch);
      columns<4, 6, kFirst>(b, step, rest);
      for (k = 64, b += 16 * step; k + 64 <= codes; k += 64, b += 16 * step) {
        tile_load<4>(a + k, job_.pitch);
        columns<4, 6, false>(b, step, rest);
      }
    }
    if (k < codes) {
      tile_load<5>(a + k, job_.pitch);
      if (k == 0) {
        columns<5, 7, kFirst>(b, step, rest);
      } else {
        columns<5, 7, false>(b, step, rest);
      }
    }
  }

  OCTAVO_INLINE void multiply(const Unit& unit, const Part& part, const int8_t* b) {
    const uint8_t* a = job_.a + unit.row * job_.pitch + unit.group * panel_.group_codes + part.code;
    const int64_t codes = codes_of(unit.group);
    if (part.code > 0) {
      Nothing rest;
      products<false>(a, b, part.codes, rest);
    } else {
      if (codes % 64 != rest_) {
        drain();
        configure(rest_ = codes % 64);
      }
      units_[n_ & 3] = unit;
      const int64_t slots = T * ((part.codes + 63) / 64);
      Rest rest(*this, n_ - 2, (16 + slots - 1) / slots);
      products<true>(a, b, part.codes, rest);
      rest.all();
    }
    if (part.code + part.codes < codes) return;
    in_registers_ = true;
    if (n_ >= 2 && added_ < n_ - 1) added_ = n_ - 1;
    ++n_;
  }

  template <int J = 0>
  OCTAVO_INLINE void store(TilePiece* pieces) {
    if constexpr (J < T) {
      tile_store<J>(pieces[J]);
      store<J + 1>(pieces);
    }
  }

  /// Adds the sums of all units to float sums; the registers are free afterwards.
  void drain() {
    if (in_registers_) store(pieces_[(n_ - 1) & 1]);
    for (; added_ < n_; ++added_) Rest(*this, added_, 0).all();
    in_registers_ = false;
  }

  const GroupJob& job_;
  const LowbitPanel& panel_;
  int64_t rest_ = -1;          // codes beyond whole steps that tiles are configured for
  int64_t n_ = 0, added_ = 0;  // units so far, and those among them that are in float sums
  bool in_registers_ = false;  // the sums of unit n_ - 1
  Unit units_[4] = {};
  TilePiece pieces_[2][4];
  alignas(64) int8_t levels_[2][kFusedGroup * kLowbitColumns];
};

void finish_rows(const GroupJob& job, int64_t row, int64_t rows, const float* f) {
  for (int64_t column = 0; column < job.panel.n; column += 16) {
    const __mmask16 mask = existing(job.panel.n - column);
    const __m512 bias = _mm512_maskz_loadu_ps(mask, job.bias + column);
    for (int64_t m = row; m < row + rows; ++m) {
      const __m512 sum = _mm512_load_ps(f + (m - row) * kLowbitColumns + column);
      const __m512 scale = _mm512_set1_ps(job.row_scale[m]);
      _mm512_mask_storeu_ps(job.y + m * job.ldy + column, mask, _mm512_fmadd_ps(sum, scale, bias));
    }
  }
}

template <int T, bool kWide>
void gemm_groups(const GroupJob& job) {
  if (job.first) {
    __builtin_memset(job.acc, 0, static_cast<size_t>(job.rows * kLowbitColumns) * sizeof(float));
  }
  Groups<T, kWide> groups(job);
  if (job.unpack != nullptr) {
    groups.by_groups();
  } else {
    groups.by_rows();
  }
  tile_release();
  if (!job.last) return;
  for (int64_t row = 0; row < job.rows; row += 16) {
    const int64_t left = job.rows - row;
    finish_rows(job, row, left < 16 ? left : 16, job.acc + row * kLowbitColumns);
  }
}

template <int T>
void gemm_width(const GroupJob& job) {
  job.panel.wide ? gemm_groups<T, true>(job) : gemm_groups<T, false>(job);
}

/// Whole rows in one group: sums stay in registers to the end, so blocks of 2 x 2 tiles are
/// fastest.
void gemm_one_group(const GroupJob& job) {
  const LowbitPanel& panel = job.panel;
  const int64_t no_offset = 0;
  GemmJob dense{};
  dense.a = job.a;
  dense.a_pixel_pitch = job.pitch;
  dense.a_row_pitch = job.rows * job.pitch;
  dense.h = 1;
  dense.w = job.rows;
  dense.run_offset = &no_offset;
  dense.runs = 1;
  dense.run_bytes = dense.depth = panel.last_codes;
  dense.b = job.b;
  dense.width = panel.width;
  dense.n = panel.n;
  dense.scale = reinterpret_cast<const float*>(panel.groups);
  dense.colsum = reinterpret_cast<const int32_t*>(panel.groups + 4 * panel.width);
  dense.offset = job.bias;
  dense.row_scale = job.row_scale;
  dense.row_zero = job.row_zero;
  dense.out_f32 = job.y;
  dense.f32_pixel_pitch = job.ldy;
  dense.f32_row_pitch = job.rows * job.ldy;
  gemm_level_rows(dense);
}

void gemm_u8s8_groups(const GroupJob& job) {
  const LowbitPanel& panel = job.panel;
  if (panel.wide && job.first && job.last && job.unpack == nullptr && job.rows > kRowUnit &&
      panel.last_codes > 0 && panel.last_codes % 64 == 0) {
    return gemm_one_group(job);
  }
  switch (job.panel.width) {
    case 16:
      return gemm_width<1>(job);
    case 32:
      return gemm_width<2>(job);
    case 48:
      return gemm_width<3>(job);
    default:
      return gemm_width<4>(job);
  }
}

}  // namespace

void fill_lowbit(LowbitTable& table) {
  table.packed_rows = table.packed_rows_levels = 6;
  table.gemm_few_groups = table.gemm_u8s8_groups;  // avx512_vnni's
  table.unpacks_groups = true;
  table.gemm_u8s8_groups = gemm_u8s8_groups;
}

}  // namespace octavo::OCTAVO_AMX

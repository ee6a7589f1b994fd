// Micro-kernels of dense products, straight from the tables of this machine's ISAs, against the
// scalar ones: grids, panel widths, depths and pitches that decide how a kernel cuts a job, each
// bit for bit, with every byte around watched.
#include <algorithm>

#include "kernel_table.h"
#include "panel.h"
#include "product_test.h"

namespace octavo::testing {
namespace {

/// A job without memory: what the kernels' choices depend on.
struct Shape {
  int64_t h, w;
  int64_t gap;  // pixels between the end of a row of activations and the next row; -1: rows of
                // another pitch
  int64_t channels, runs, run_codes;
  int64_t columns;
  int64_t out_gap;  // pixels between rows of results
  bool residual, in_place, narrow = false;

  std::string text() const {
    std::ostringstream s;
    s << "h " << h << " w " << w << " gap " << gap << " channels " << channels << " runs " << runs
      << " x " << run_codes << " columns " << columns << " out_gap " << out_gap << " residual "
      << residual << " in place " << in_place;
    return s.str();
  }
};

/// One job's memory, and the job for any layout.
class Case {
 public:
  Case(const Shape& shape, Random& random)
      : s_(shape), row_zero_(shape.h * shape.w), row_scale_(shape.h * shape.w) {
    pixel_ = s_.channels + random.below(3) * 7;
    row_ = s_.gap >= 0 ? (s_.w + s_.gap) * pixel_ : s_.w * pixel_ + random.in(1, 5);
    for (int64_t r = 0; r < s_.runs; ++r) offsets_.push_back(r * row_ + random.below(2) * pixel_);
    const int64_t reach = s_.h * row_ + s_.w * pixel_ + (s_.runs + 1) * row_ + s_.run_codes;
    activations_.resize(reach + 2 * kSlack);
    for (auto& a : activations_) a = random.code();
    codes_.resize(s_.runs * s_.run_codes * s_.columns);
    for (auto& c : codes_) {
      c = static_cast<int8_t>(random.below(6) == 0 ? (random.below(2) == 0 ? -128 : 127)
                                                   : random.in(-128, 127));
      if (s_.narrow) c = static_cast<int8_t>(c >> 1);
    }
    const double spread = std::sqrt(1.0 + static_cast<double>(s_.runs * s_.run_codes)) * 9000.0;
    for (int64_t c = 0; c < s_.columns; ++c) {
      start_.push_back(static_cast<int32_t>(random.in(-100000, 100000)));
      colsum_.push_back(static_cast<int32_t>(random.in(-100000, 100000)));
      scale_.push_back(static_cast<float>(80.0 / spread) * (random.below(8) == 0 ? -1.0f : 1.0f));
      offset_.push_back(120.0f + 60.0f * random.real());
    }
    out_pixel_ = s_.columns + random.below(2) * 9;
    out_row_ = (s_.w + s_.out_gap) * out_pixel_;
    out_size_ = s_.h * out_row_ + 64;
    residual_.resize(out_size_ + kSlack);
    for (auto& r : residual_) r = random.code();
    if (random.below(2) == 0) {  // pixels between rows hold one code and may be written
      gap_code_ = random.code();
      for (int64_t y = 0; y < s_.h; ++y) {
        std::fill_n(residual_.begin() + y * out_row_ + s_.w * out_pixel_, s_.out_gap * out_pixel_,
                    static_cast<uint8_t>(gap_code_));
      }
    }
    for (int64_t i = 0; i < s_.h * s_.w; ++i) {
      row_scale_[i] = 0.5f + 0.4f * random.real();
      row_zero_[i] = static_cast<int32_t>(random.below(256));
    }
    lo_ = random.below(2) == 0 ? 0.0f : static_cast<float>(random.in(0, 60));
    hi_ = random.below(2) == 0 ? 255.0f : static_cast<float>(random.in(150, 255));
  }

  /// Codes, floats and dynamic rows (h = 1 only) of one ISA, with all that lies around them.
  struct Results {
    std::vector<uint8_t> codes;
    std::vector<float> floats, rows;
    bool operator==(const Results&) const = default;
  };
  /// split: on the panel's second form, of which the job's runs are all but the first.
  Results run(const GemmTable& table, bool split = false) const {
    const PanelUnits& units = kPanelUnits[static_cast<int>(table.layout)];
    const int64_t width = round_up(s_.columns, units.n_unit);
    const int64_t run_bytes = round_up(s_.run_codes, units.k_unit);
    const int64_t first_run = split ? 1 : 0, all_runs = s_.runs + first_run;
    const int64_t depth = all_runs * run_bytes, bytes = depth * width;
    Guarded<int8_t> panel(round_up(bytes, 64) + 64);
    std::fill_n(panel.data(), panel.size(), int8_t{0});
    int8_t* b = panel.data() + (64 - reinterpret_cast<uintptr_t>(panel.data()) % 64) % 64;
    for (int64_t r = 0; r < s_.runs; ++r) {
      for (int64_t k = 0; k < s_.run_codes; ++k) {
        for (int64_t c = 0; c < s_.columns; ++c) {
          b[panel_offset(table.layout, width, depth, (r + first_run) * run_bytes + k, c)] =
              codes_[(r * s_.run_codes + k) * s_.columns + c];
        }
      }
    }
    GemmJob job{};
    job.a = activations_.data() + kSlack;
    job.a_row_pitch = row_;
    job.a_pixel_pitch = pixel_;
    job.h = s_.h;
    job.w = s_.w;
    job.run_offset = offsets_.data();
    job.runs = s_.runs;
    job.run_bytes = run_bytes;
    job.b = b + panel_offset(table.layout, width, depth, first_run * run_bytes, 0);
    job.width = width;
    job.depth = depth;
    job.n = s_.columns;
    job.narrow = s_.narrow;
    job.start = start_.data();
    job.scale = scale_.data();
    job.offset = offset_.data();
    job.lo = lo_;
    job.hi = hi_;
    job.gap_code = gap_code_;
    std::vector<uint8_t> memory;
    if (split) {
      job.first_run = first_run;
      memory.resize(table.split_bytes(width, depth) + 64);
      job.split = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
      table.split_panel(b, width, depth, job.split);
    }

    Results results;
    results.codes.assign(residual_.begin(), residual_.end());
    job.out = results.codes.data();
    job.out_pixel_pitch = out_pixel_;
    job.out_row_pitch = out_row_;
    if (s_.residual) {
      job.residual = s_.in_place ? results.codes.data() : residual_.data();
      job.residual_pixel_pitch = out_pixel_;
      job.residual_row_pitch = out_row_;
      job.residual_scale = 0.3f;
    }
    table.gemm_u8s8_u8(job);

    results.floats.assign(out_size_, -1.0f);
    job.out_f32 = results.floats.data();
    job.f32_pixel_pitch = out_pixel_;
    job.f32_row_pitch = out_row_;
    table.gemm_u8s8_f32(job);

    if (s_.h == 1) {
      results.rows.assign(out_size_, -1.0f);
      job.out_f32 = results.rows.data();
      job.row_scale = row_scale_.data();
      job.row_zero = row_zero_.data();
      job.colsum = colsum_.data();
      table.gemm_u8s8_rows(job);
    }
    return results;
  }

 private:
  Shape s_;
  int64_t pixel_, row_, out_pixel_, out_row_, out_size_;
  std::vector<int64_t> offsets_;
  std::vector<uint8_t> activations_, residual_;
  std::vector<int8_t> codes_;
  std::vector<int32_t> start_, colsum_;
  std::vector<float> scale_, offset_;
  mutable Guarded<int32_t> row_zero_;
  mutable Guarded<float> row_scale_;
  float lo_, hi_;
  int32_t gap_code_ = -1;
};

class GemmJobs : public IsaTest {
 protected:
  int64_t most_columns() const {
    return find_table(GetParam().c_str())->gemm.joins_panels ? 300 : 64;
  }

  void check(const Shape& shape, Random& random) {
    SCOPED_TRACE(shape.text());
    const Case c(shape, random);
    const Case::Results expected = c.run(find_table("scalar")->gemm);
    const GemmTable& table = find_table(GetParam().c_str())->gemm;
    for (const bool split : {false, true}) {
      if (split && (table.split_panel == nullptr || shape.narrow)) continue;
      SCOPED_TRACE(split ? "split panel" : "panel");
      const Case::Results got = c.run(table, split);
      EXPECT_EQ(got.codes, expected.codes);
      EXPECT_EQ(got.floats, expected.floats);
      EXPECT_EQ(got.rows, expected.rows);
    }
  }
};
OCTAVO_FOR_EVERY_ISA(GemmJobs);

TEST_P(GemmJobs, RandomJobsEqualScalar) {
  Random random(51);
  const int jobs = ci_suite() ? 10000 : 400;
  for (int i = 0; i < jobs && !HasFailure(); ++i) {
    Shape s{};
    s.h = random.below(3) == 0 ? 1 : random.in(1, 9);
    s.w = random.below(6) == 0 ? 1 : random.in(1, random.below(3) == 0 ? 70 : 20);
    s.gap = random.in(-1, 3);
    s.channels = random.in(1, 90);
    s.runs = random.below(12) == 0 ? 0 : random.in(1, 3);
    s.run_codes = random.in(1, 200);
    s.columns = random.in(1, random.below(2) == 0 ? 64 : most_columns());
    s.out_gap = random.below(3);
    s.residual = random.below(2) == 0;
    s.in_place = random.below(2) == 0;
    s.narrow = random.below(3) == 0;
    check(s, random);
  }
}

/// Every number of pixels up to some tiles, shallow and deep, for a whole and a partial panel.
TEST_P(GemmJobs, EveryNumberOfPixelsAndDepth) {
  Random random(52);
  for (const int64_t depth : {1, 64, 65, 256, 320, 1600}) {
    for (int64_t pixels = 1; pixels <= (depth > 1000 ? 70 : 36); ++pixels) {
      for (const int64_t columns : {64, 33}) {
        check({1, pixels, 0, 24, 1, depth, columns, 0, pixels % 2 == 0, false}, random);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(GemmJobs, EveryNumberOfColumns) {
  Random random(53);
  for (int64_t columns = 1; columns <= most_columns(); columns += columns < 64 ? 1 : 13) {
    for (const int64_t gap : {-1, 1}) {
      check({3, 7, gap, 16, 2, 48, columns, 1, columns % 2 == 0, false}, random);
      if (HasFailure()) return;
    }
  }
}

/// Sums that leave float32's exact integers and come near the ends of int32.
TEST_P(GemmJobs, LargestSums) {
  Random random(54);
  for (int i = 0; i < 3; ++i) check({2, 3, 0, 5, 4, 16000, 17, 0, false, false}, random);
}

}  // namespace
}  // namespace octavo::testing

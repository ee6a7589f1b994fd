// Tests elementwise.cpp on every ISA against the formulas of csrc/kernels/kernels.h.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "element_test.h"
#include "kernel_table.h"

namespace octavo {
#if defined(OCTAVO_HAS_AVX512_VNNI)
namespace avx512_vnni {
void fill_elementwise(ElementTable& table);
}
#endif
namespace {

using testing::clamped;
using testing::Codes;
using testing::for_each_mode_and_thread_count;
using testing::for_each_thread_count;
using testing::Guarded;
using testing::Random;

class Elementwise : public testing::IsaTest {};
OCTAVO_FOR_EVERY_ISA(Elementwise);

struct AddCase {
  float ma, mb, offset, lo, hi;
};
// The last ones overflow the range of int32 or of float32, or are ties only.
const AddCase kAdds[] = {{0.61f, 0.83f, -13.7f, 0, 255},
                         {-0.5f, 0.5f, 100.5f, 3, 250},
                         {0.5f, 0.5f, 0, 0, 255},
                         {1e8f, -1e8f, 7, 0, 255},
                         {3e38f, 3e38f, 0, 0, 255},
                         {0, 0, 300, 10, 127},
                         {0x1p-140f, 0x1p-140f, 0.5f, 0, 255}};

int32_t expected_add(uint8_t a, uint8_t b, const AddCase& k) {
  return clamped(std::fmaf(a, k.ma, std::fmaf(b, k.mb, k.offset)), k.lo, k.hi);
}

void call_add(const Codes& a, const Codes& b, const AddCase& k, const Codes& out) {
  add(a.view, b.view, k.ma, k.mb, k.offset, k.lo, k.hi, out.view);
}

TEST_P(Elementwise, AddAllPairsOfCodes) {
  Codes a(1, 256, 256, 1), b(1, 256, 256, 1), out(1, 256, 256, 1);
  a.each([&](int64_t, int64_t y, int64_t x, int64_t) {
    a.at(0, y, x, 0) = static_cast<uint8_t>(y);
    b.at(0, y, x, 0) = static_cast<uint8_t>(x);
  });
  for (const AddCase& k : kAdds) {
    call_add(a, b, k, out);
    out.each([&](int64_t, int64_t y, int64_t x, int64_t) {
      ASSERT_EQ(out.at(0, y, x, 0), expected_add(y, x, k)) << y << " " << x << " m " << k.ma;
    });
  }
}

struct Shape {
  int64_t n, h, w, c;
};

// Shapes, halos and gaps of three images.
template <class F>
void for_each_geometry(F&& f) {
  const Shape shapes[] = {{1, 1, 1, 1},   {2, 3, 5, 16}, {1, 7, 7, 33}, {3, 2, 2, 64},
                          {1, 4, 9, 130}, {2, 1, 1, 24}, {0, 2, 2, 8},  {1, 0, 2, 8},
                          {1, 2, 0, 8},   {2, 2, 2, 0}};
  for (const Shape& s : shapes) {
    for (const int64_t halo_in : {0, 1}) {
      for (const int64_t halo_out : {0, 2}) {
        for (const int64_t gap_in : {0, 3}) {
          for (const int64_t gap_out : {0, 7}) {
            for (const int64_t row_gap : {0, 64}) f(s, halo_in, halo_out, gap_in, gap_out, row_gap);
          }
        }
      }
    }
  }
}

TEST_P(Elementwise, AddOfAnyGeometry) {
  Random random(1);
  for_each_geometry(
      [&](const Shape& s, int64_t hi, int64_t ho, int64_t gi, int64_t go, int64_t rg) {
        Codes a(s.n, s.h, s.w, s.c, hi, gi), b(s.n, s.h, s.w, s.c, ho, 0, rg),
            out(s.n, s.h, s.w, s.c, ho, go, rg);
        a.fill(random);
        b.fill(random);
        call_add(a, b, kAdds[0], out);
        out.each([&](auto... i) {
          ASSERT_EQ(out.at(i...), expected_add(a.at(i...), b.at(i...), kAdds[0]));
        });
        ASSERT_TRUE(out.outside_intact());
      });
}

TEST_P(Elementwise, AddEveryLengthInPlace) {
  Random random(2);
  for (int64_t c = 1; c <= 200; ++c) {
    Codes a(1, 1, 1, c), b(1, 1, 1, c);
    a.fill(random);
    b.fill(random);
    const std::vector<uint8_t> va = a.values(), vb = b.values();
    call_add(a, b, kAdds[0], a);
    for (int64_t i = 0; i < c; ++i)
      ASSERT_EQ(a.at(0, 0, 0, i), expected_add(va[i], vb[i], kAdds[0]));
    a.fill(random);
    const std::vector<uint8_t> again = a.values();
    call_add(a, b, kAdds[0], b);
    for (int64_t i = 0; i < c; ++i)
      ASSERT_EQ(b.at(0, 0, 0, i), expected_add(again[i], vb[i], kAdds[0]));
    ASSERT_TRUE(a.outside_intact() && b.outside_intact());
  }
}

TEST_P(Elementwise, ModesAndThreadsDoNotMatter) {
  Random random(3);
  Codes a(2, 56, 56, 256, 1), b(2, 56, 56, 256), out(2, 56, 56, 256, 1);
  Codes scale(2, 1, 1, 256);
  a.fill(random);
  b.fill(random);
  scale.fill(random);
  std::vector<float> m(256), offset(256);
  for (int i = 0; i < 256; ++i)
    m[i] = random.real() * 2.0f, offset[i] = 128.0f + 100.0f * random.real();
  call_add(a, b, kAdds[0], out);
  const std::vector<uint8_t> sums = out.values();
  multiply(a.view, scale.view, 3, 100, 0.01f, 128.5f, 0, 255, out.view);
  const std::vector<uint8_t> products = out.values();
  affine(a.view, m.data(), offset.data(), 0, 255, out.view);
  const std::vector<uint8_t> affines = out.values();
  for_each_mode_and_thread_count([&](const std::string& mode, int threads) {
    call_add(a, b, kAdds[0], out);
    EXPECT_EQ(out.values(), sums) << threads << " " << mode;
    multiply(a.view, scale.view, 3, 100, 0.01f, 128.5f, 0, 255, out.view);
    EXPECT_EQ(out.values(), products) << threads << " " << mode;
    affine(a.view, m.data(), offset.data(), 0, 255, out.view);
    EXPECT_EQ(out.values(), affines) << threads << " " << mode;
  });
}

struct MultiplyCase {
  int32_t za, zb;
  float m, offset, lo, hi;
};
const MultiplyCase kMultiplies[] = {{0, 0, 1.0f / 255, 0, 0, 255},
                                    {128, 3, 0.011f, 120.5f, 0, 255},
                                    {255, 255, -0.01f, 255, 5, 200},
                                    {7, 200, 1e30f, 0, 0, 255}};

int32_t expected_product(uint8_t a, uint8_t b, const MultiplyCase& k) {
  const int32_t product = (a - k.za) * (b - k.zb);
  return clamped(std::fmaf(static_cast<float>(product), k.m, k.offset), k.lo, k.hi);
}

void call_multiply(const Codes& a, const Codes& b, const MultiplyCase& k, const Codes& out) {
  multiply(a.view, b.view, k.za, k.zb, k.m, k.offset, k.lo, k.hi, out.view);
}

TEST_P(Elementwise, MultiplyAllPairsOfCodes) {
  Codes a(1, 256, 256, 1), b(1, 256, 256, 1), out(1, 256, 256, 1);
  a.each([&](int64_t, int64_t y, int64_t x, int64_t) {
    a.at(0, y, x, 0) = static_cast<uint8_t>(y);
    b.at(0, y, x, 0) = static_cast<uint8_t>(x);
  });
  for (const MultiplyCase& k : kMultiplies) {
    call_multiply(a, b, k, out);
    out.each([&](int64_t, int64_t y, int64_t x, int64_t) {
      ASSERT_EQ(out.at(0, y, x, 0), expected_product(y, x, k)) << y << " " << x;
    });
  }
}

TEST_P(Elementwise, MultiplyOfAnyGeometryPlainAndBroadcast) {
  Random random(4);
  for_each_geometry([&](const Shape& s, int64_t hi, int64_t ho, int64_t gi, int64_t go,
                        int64_t rg) {
    for (const bool broadcast : {false, true}) {
      const int64_t h = broadcast ? 1 : s.h, w = broadcast ? 1 : s.w;
      Codes a(s.n, s.h, s.w, s.c, hi, gi), b(s.n, h, w, s.c, ho, 0, rg),
          out(s.n, s.h, s.w, s.c, ho, go, rg);
      a.fill(random);
      b.fill(random);
      call_multiply(a, b, kMultiplies[1], out);
      out.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
        const uint8_t factor = b.at(n, broadcast ? 0 : y, broadcast ? 0 : x, c);
        ASSERT_EQ(out.at(n, y, x, c), expected_product(a.at(n, y, x, c), factor, kMultiplies[1]));
      });
      ASSERT_TRUE(out.outside_intact());
    }
  });
}

TEST_P(Elementwise, MultiplyEveryChannelCountInPlace) {
  Random random(5);
  for (int64_t c = 1; c <= 150; ++c) {
    Codes a(2, 3, 15, c), b(2, 1, 1, c);
    a.fill(random);
    b.fill(random);
    Codes before(2, 3, 15, c);
    a.each([&](auto... i) { before.at(i...) = a.at(i...); });
    call_multiply(a, b, kMultiplies[1], a);
    a.each([&](int64_t n, int64_t y, int64_t x, int64_t i) {
      ASSERT_EQ(a.at(n, y, x, i),
                expected_product(before.at(n, y, x, i), b.at(n, 0, 0, i), kMultiplies[1]));
    });
    ASSERT_TRUE(a.outside_intact());
  }
}

TEST_P(Elementwise, AffineOfEveryChannelCountAndGeometry) {
  Random random(6);
  auto check = [&](Codes& x, Codes& out) {
    const int64_t c = x.view.c;
    Guarded<float> m(c), offset(c);
    for (int64_t i = 0; i < c; ++i)
      m[i] = 2.0f * random.real(), offset[i] = 128.0f + 128.0f * random.real();
    if (c > 2) m[2] = 1e38f, offset[1] = -1e38f;
    x.fill(random);
    affine(x.view, m.data(), offset.data(), 2, 251, out.view);
    out.each([&](int64_t n, int64_t y, int64_t w, int64_t i) {
      ASSERT_EQ(out.at(n, y, w, i), clamped(std::fmaf(x.at(n, y, w, i), m[i], offset[i]), 2, 251));
    });
    ASSERT_TRUE(out.outside_intact());
  };
  for (int64_t c = 1; c <= 150; ++c) {
    Codes x(1, 2, 18, c), out(1, 2, 18, c);
    check(x, out);
  }
  for_each_geometry(
      [&](const Shape& s, int64_t hi, int64_t ho, int64_t gi, int64_t go, int64_t rg) {
        Codes x(s.n, s.h, s.w, s.c, hi, gi, rg), out(s.n, s.h, s.w, s.c, ho, go);
        check(x, out);
      });
}

TEST_P(Elementwise, TableOfEveryLengthAndGeometry) {
  Random random(7);
  Guarded<uint8_t> table(256);
  for (int i = 0; i < 256; ++i) table[i] = static_cast<uint8_t>(random.below(256));
  auto check = [&](Codes& x, Codes& out) {
    x.fill(random);
    apply_table(x.view, table.data(), false, out.view);
    out.each([&](auto... i) { ASSERT_EQ(out.at(i...), table[x.at(i...)]); });
    ASSERT_TRUE(out.outside_intact());
  };
  for (int64_t c = 1; c <= 200; ++c) {
    Codes x(1, 1, 1, c), out(1, 1, 1, c);
    check(x, out);
  }
  for_each_geometry(
      [&](const Shape& s, int64_t hi, int64_t ho, int64_t gi, int64_t go, int64_t rg) {
        Codes x(s.n, s.h, s.w, s.c, hi, gi, rg), out(s.n, s.h, s.w, s.c, ho, go);
        check(x, out);
      });
}

TEST_P(Elementwise, TableInPlaceWithThreads) {
  Random random(8);
  uint8_t table[256];
  for (int i = 0; i < 256; ++i) table[i] = static_cast<uint8_t>(255 - i / 2);
  for_each_thread_count([&](int threads) {
    Codes x(2, 70, 70, 128);
    x.fill(random);
    const std::vector<uint8_t> before = x.values();
    apply_table(x.view, table, false, x.view);
    const std::vector<uint8_t> after = x.values();
    for (size_t i = 0; i < before.size(); ++i) ASSERT_EQ(after[i], table[before[i]]) << threads;
  });
}

TEST_P(Elementwise, ChannelTables) {
  Random random(9);
  for_each_geometry(
      [&](const Shape& s, int64_t hi, int64_t ho, int64_t gi, int64_t go, int64_t rg) {
        Guarded<uint8_t> tables(256 * s.c);
        for (int64_t i = 0; i < 256 * s.c; ++i) tables[i] = static_cast<uint8_t>(random.below(256));
        Codes x(s.n, s.h, s.w, s.c, hi, gi, rg), out(s.n, s.h, s.w, s.c, ho, go);
        x.fill(random);
        apply_table(x.view, tables.data(), true, out.view);
        out.each([&](int64_t n, int64_t y, int64_t w, int64_t c) {
          ASSERT_EQ(out.at(n, y, w, c), tables[256 * c + x.at(n, y, w, c)]);
        });
        ASSERT_TRUE(out.outside_intact());
      });
}

#if defined(OCTAVO_HAS_AVX512_VNNI)
// On CPUs with byte permutes the table entry is replaced by that form, so the form without is
// called here.
TEST(ElementwiseWithoutBytePermutes, Table) {
  const KernelTable* row = find_table("avx512_vnni");
  if (row == nullptr) GTEST_SKIP() << "no AVX-512 here";
  ElementTable table = row->element;
  avx512_vnni::fill_elementwise(table);
  Random random(10);
  Guarded<uint8_t> entries(256);
  for (int i = 0; i < 256; ++i) entries[i] = static_cast<uint8_t>(random.below(256));
  for (int64_t count = 0; count <= 400; ++count) {
    Guarded<uint8_t> x(count), out(count);
    for (int64_t i = 0; i < count; ++i) x[i] = static_cast<uint8_t>(i * 37 + count);
    table.table_u8_u8(x.data(), count, entries.data(), out.data());
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(out[i], entries[x[i]]);
  }
}
#endif

}  // namespace
}  // namespace octavo

// The region driver against a straightforward interpreter: every kind of step, random networks,
// batches, threads, strides, instruction sets.
#include <gtest/gtest.h>
#include <omp.h>

#include "region/region_test.h"

namespace octavo {
namespace {

class Region : public RegionTest {};
OCTAVO_FOR_EVERY_ISA(Region);

TEST_P(Region, EveryKind) {
  RegionBuilder b(1);
  const int q = b.step("quantize in=0 layout=image" + b.params());
  const int c = b.step("conv" + x(q) + panel(b.weight(24, 6, 1, 3, 3)) +
                       " channels=24 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1" + b.params() +
                       b.clamp());
  const int d = b.step("conv" + x(c) + panel(b.weight(24, 24, 24, 3, 3)) +
                       " channels=24 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1" + b.params() +
                       b.clamp());
  const int r = b.step("conv" + x(d) + panel(b.weight(24, 24, 1, 1, 1)) +
                       " channels=24 kernel=1,1 stride=1,1 pad=0,0,0,0 dilation=1,1" + b.params() +
                       b.clamp() + " r=" + std::to_string(c));
  const int add = b.step("add" + x(r) + " y=" + std::to_string(d) + b.params() + b.clamp());
  const int gate = b.step("adaptive_avg_pool" + x(add) + " size=1,1" + b.params());
  const int mul = b.step("mul" + x(add) + " y=" + std::to_string(gate) + b.params() + b.clamp());
  const int mul2 = b.step("mul" + x(mul) + " y=" + std::to_string(add) + b.params() + b.clamp());
  const int aff = b.step("affine" + x(mul2) + panel(b.floats(48)) + b.params() + b.clamp());
  const int table = b.step("table" + x(aff) + panel(b.byte_table(256)) + b.params());
  const int tables =
      b.step("channel_table" + x(table) + panel(b.byte_table(24 * 256)) + b.params());
  const int cat = b.step("concat x=" + std::to_string(tables) + "," + std::to_string(add) + "," +
                         std::to_string(table) + b.params());
  std::vector<int32_t> shuffle;
  for (int i = 0; i < 40; ++i) shuffle.push_back(static_cast<int32_t>(b.pick(-1, 71)));
  const int gather = b.step("gather_channels" + x(cat) + panel(b.channels(shuffle)));
  const int max =
      b.step("max_pool" + x(gather) + " kernel=3,2 stride=2,1 pad=1,0,1,1 dilation=1,1 ceil=1");
  const int avg =
      b.step("avg_pool" + x(max) +
             " kernel=3,3 stride=1,2 pad=1,1,1,1 ceil=1 include_pad=1 divisor=0" + b.params());
  const int avg2 =
      b.step("avg_pool" + x(avg) +
             " kernel=2,2 stride=1,1 pad=1,1,1,1 ceil=0 include_pad=0 divisor=0" + b.params());
  const int sl = b.step("slice" + x(avg2) + " h=1,-1,1 w=0,4,2");
  const int up = b.step("upsample_nearest" + x(sl) + " size=0,5 scale=0x1p1,0x0p0");
  const int pad = b.step("pad" + x(up) + " pad=1,2,0,1 mode=reflect value=0");
  const int pad2 = b.step("pad" + x(pad) + " pad=0,1,2,0 mode=constant value=0x1p-2");
  const int amax = b.step("adaptive_max_pool" + x(pad2) + " size=3,0");
  const int rows = b.step("to_rows" + x(amax));
  const int lin = b.step("linear" + x(rows) + panel(b.weight(33, 40, 1, 1, 1)) + " channels=33" +
                         b.params() + b.clamp());
  const int image = b.step("to_image" + x(lin));
  const int conv32 =
      b.step("conv_f32" + x(image) + panel(b.weight(5, 33, 1, 2, 3)) +
             " channels=5 kernel=2,3 stride=1,2 pad=1,1,0,2 dilation=1,1 lo=-inf hi=0x1p1");
  const int flat = b.step("flatten" + x(gate));
  const int back = b.step("unflatten" + x(flat) + " size=6,2,2");
  const int lin2 = b.step("linear_f32" + x(flat) + panel(b.weight(10, 24, 1, 1, 1)) +
                          " channels=10 lo=-inf hi=inf");
  const int dyn = b.step("quantize_dynamic in=0 layout=image max=255");
  const int dconv = b.step("conv_dynamic" + x(dyn) + panel(b.weight(7, 6, 1, 3, 3)) +
                           " channels=7 kernel=3,3 stride=2,2 pad=1,1,1,1 dilation=1,1");
  for (const int id : {conv32, lin2, back, dconv, pad2, cat, c, c}) b.out(id);
  for (const int64_t n : {1, 3, 4}) {
    for (const int threads : {1, 2}) {
      omp_set_num_threads(threads);
      for (const Order order : {Order::kContiguous, Order::kChannelsLast, Order::kSliced}) {
        const Input in(b, {n, 6, 9, 8}, order);
        expect_as_reference(b, {in.view});
      }
    }
  }
}

TEST_P(Region, OneDimensional) {
  RegionBuilder b(2);
  const int q = b.step("quantize in=0 layout=image1d" + b.params());
  const int c = b.step("conv" + x(q) + panel(b.weight(20, 8, 2, 1, 5)) +
                       " channels=20 kernel=1,5 stride=1,2 pad=0,4,0,4 dilation=1,2" + b.params() +
                       b.clamp());
  const int p =
      b.step("max_pool" + x(c) + " kernel=1,2 stride=1,2 pad=0,0,0,0 dilation=1,1 ceil=0");
  const int f = b.step("conv_f32" + x(p) + panel(b.weight(3, 20, 1, 1, 3)) +
                       " channels=3 kernel=1,3 stride=1,1 pad=0,1,0,1 dilation=1,1 lo=-inf hi=inf");
  const int rows = b.step("to_rows" + x(p));
  b.out(f), b.out(rows), b.out(p);
  for (const int64_t n : {1, 5}) {
    const Input in(b, {n, 8, 23}, Order::kContiguous);
    expect_as_reference(b, {in.view});
  }
}

TEST_P(Region, RowsOfAnyRank) {
  RegionBuilder b(3);
  const int q = b.step("quantize in=0 layout=rows" + b.params());
  const int r = b.step("quantize in=1 layout=rows" + b.params());
  const int l = b.step("linear" + x(q) + panel(b.weight(48, 40, 1, 1, 1)) + " channels=48" +
                       b.params() + b.clamp());
  const int t = b.step("table" + x(l) + panel(b.byte_table(256)) + b.params());
  const int m = b.step("linear" + x(t) + panel(b.weight(40, 48, 1, 1, 1)) + " channels=40" +
                       b.params() + b.clamp() + " r=" + std::to_string(r));
  const int f = b.step("linear_f32" + x(m) + panel(b.weight(17, 40, 1, 1, 1)) +
                       " channels=17 lo=-inf hi=inf");
  b.out(f), b.out(m);
  for (const int threads : {1, 2}) {
    omp_set_num_threads(threads);
    for (const std::vector<int64_t>& sizes :
         {std::vector<int64_t>{40}, {7, 40}, {2, 3, 40}, {2, 129, 40}, {2, 3, 4, 5, 40}}) {
      const Input in(b, sizes, Order::kContiguous), residual(b, sizes, Order::kContiguous);
      expect_as_reference(b, {in.view, residual.view});
    }
  }
}

/// A random network of images: every step reads earlier values; ends in several results.
void random_network(RegionBuilder& b, int64_t n, int64_t c, int64_t h, int64_t w, int length) {
  std::vector<int> ids;
  std::vector<Shape> shapes;
  const auto add = [&](const std::string& rest, int64_t channels, int64_t height, int64_t width) {
    Shape s;
    s.n = n, s.c = channels, s.h = height, s.w = width;
    ids.push_back(b.step(rest));
    shapes.push_back(s);
  };
  add("quantize in=0 layout=image" + b.params(), c, h, w);
  while (static_cast<int>(ids.size()) < length) {
    const auto i =
        static_cast<size_t>(b.pick(std::max<int64_t>(0, static_cast<int64_t>(ids.size()) - 4),
                                   static_cast<int64_t>(ids.size()) - 1));
    const Shape s = shapes[i];
    const std::string from = x(ids[i]);
    switch (b.pick(0, 8)) {
      case 0:
      case 1: {
        const int64_t k = b.pick(0, 1) * 2 + 1, stride = s.h > 4 && s.w > 4 ? b.pick(1, 2) : 1;
        const bool depthwise = b.pick(0, 2) == 0;
        const int64_t out = depthwise ? s.c : b.pick(1, 40);
        const int64_t pad = k / 2 + (b.pick(0, 3) == 0 ? 1 : 0);
        const std::string p = std::to_string(pad);
        add("conv" + from + panel(b.weight(out, s.c, depthwise ? s.c : 1, k, k)) + " channels=" +
                std::to_string(out) + " kernel=" + std::to_string(k) + "," + std::to_string(k) +
                " stride=" + std::to_string(stride) + "," + std::to_string(stride) + " pad=" + p +
                "," + p + "," + p + "," + p + " dilation=1,1" + b.params() + b.clamp(),
            out, (s.h + 2 * pad - k) / stride + 1, (s.w + 2 * pad - k) / stride + 1);
        break;
      }
      case 2: {  // concat of everything recent that has the same size, some in equal parameters
        std::string parts;
        int64_t channels = 0;
        for (size_t j = 0; j < ids.size(); ++j) {
          if (shapes[j].h == s.h && shapes[j].w == s.w && (j == i || b.pick(0, 1) == 0)) {
            parts += (parts.empty() ? "" : ",") + std::to_string(ids[j]);
            channels += shapes[j].c;
          }
        }
        if (channels > 200) break;
        add("concat x=" + parts + b.params(), channels, s.h, s.w);
        break;
      }
      case 3: {  // a pair of branches that were made for one concat
        const std::string shared = b.params();
        const int64_t first = b.pick(1, 20), second = b.pick(1, 20);
        const auto branch = [&](int64_t out) {
          add("conv" + from + panel(b.weight(out, s.c, 1, 1, 1)) +
                  " channels=" + std::to_string(out) +
                  " kernel=1,1 stride=1,1 pad=0,0,0,0 dilation=1,1" + shared + b.clamp(),
              out, s.h, s.w);
          return ids.back();
        };
        const int u = branch(first), v = branch(second);
        add("concat x=" + std::to_string(u) + "," + std::to_string(v) + shared, first + second, s.h,
            s.w);
        // Nobody else reads the branches, so that they can lie inside the result.
        ids.erase(ids.end() - 3, ids.end() - 1);
        shapes.erase(shapes.end() - 3, shapes.end() - 1);
        break;
      }
      case 4: {  // a range of channels, contiguous (a view) or not
        const int64_t first = b.pick(0, s.c - 1), count = b.pick(1, s.c - first);
        std::vector<int32_t> index;
        for (int64_t j = 0; j < count; ++j) index.push_back(static_cast<int32_t>(first + j));
        if (b.pick(0, 2) == 0) index[0] = -1;
        add("gather_channels" + from + panel(b.channels(index)), count, s.h, s.w);
        break;
      }
      case 5:
        add("table" + from + panel(b.byte_table(256)) + b.params(), s.c, s.h, s.w);
        break;
      case 6: {
        add("adaptive_avg_pool" + from + " size=1,1" + b.params(), s.c, 1, 1);
        const int gate = ids.back();
        add("mul" + from + " y=" + std::to_string(gate) + b.params() + b.clamp(), s.c, s.h, s.w);
        break;
      }
      case 7:
        if (s.h < 3 || s.w < 3) break;
        add("max_pool" + from + " kernel=2,2 stride=1,1 pad=0,0,0,0 dilation=1,1 ceil=0", s.c,
            s.h - 1, s.w - 1);
        break;
      default: {
        // To rows and back: views where no halo stands between.
        const int rows = b.step("to_rows" + from);
        const int lin = b.step("linear" + x(rows) + panel(b.weight(s.c, s.c, 1, 1, 1)) +
                               " channels=" + std::to_string(s.c) + b.params() + b.clamp());
        add("to_image" + x(lin), s.c, s.h, s.w);
        break;
      }
    }
  }
  for (size_t j = 0; j < ids.size(); ++j) {
    if (j + 1 == ids.size() || b.pick(0, 5) == 0) b.out(ids[j]);
  }
}

TEST_P(Region, RandomNetworks) {
  const bool scalar = GetParam() == "scalar";
  for (uint64_t seed = 0; seed < (scalar ? 30u : 60u); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RegionBuilder b(seed);
    const int64_t n = b.pick(1, 5), c = b.pick(1, 12), h = b.pick(1, 9), w = b.pick(1, 9);
    omp_set_num_threads(static_cast<int>(b.pick(1, 3)));
    random_network(b, n, c, h, w, 14);
    const Input in(b, {n, c, h, w}, static_cast<Order>(b.pick(0, 2)));
    expect_as_reference(b, {in.view});
    if (HasFatalFailure()) return;
  }
}

TEST_P(Region, EmptyBatch) {
  RegionBuilder b(4);
  const int q = b.step("quantize in=0 layout=image" + b.params());
  const int c =
      b.step("conv" + x(q) + panel(b.weight(4, 3, 1, 3, 3)) +
             " channels=4 kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1" + b.params() + b.clamp());
  b.out(c);
  const Input in(b, {0, 3, 5, 5}, Order::kContiguous);
  EXPECT_TRUE(run_region(b, {in.view}, 0).empty());
}

TEST_P(Region, ManySteps) {
  RegionBuilder b(5);
  int id = b.step("quantize in=0 layout=rows" + b.params());
  const int table = b.byte_table(256);
  for (int i = 0; i < 3000; ++i) id = b.step("table" + x(id) + panel(table) + b.params());
  b.out(id);
  const Input in(b, {5, 7}, Order::kContiguous);
  expect_as_reference(b, {in.view});
}

}  // namespace
}  // namespace octavo

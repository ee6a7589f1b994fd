// Depthwise convolutions: every kernel size, stride and dilation with every channel tail, against
// the int64 reference, bit for bit, on every ISA of this machine. (Random geometry with residuals
// and slices: test_conv.cpp.)
#include "product_test.h"

namespace octavo::testing {
namespace {

class Depthwise : public IsaTest {};
OCTAVO_FOR_EVERY_ISA(Depthwise);

void check(int64_t channels, int64_t h, int64_t w, const ConvGeometry& g, Random& random,
           int32_t zero_point) {
  SCOPED_TRACE("channels " + std::to_string(channels) + " h " + std::to_string(h) + " w " +
               std::to_string(w) + " kernel " + std::to_string(g.kernel_h) + "x" +
               std::to_string(g.kernel_w) + " stride " + std::to_string(g.stride_w) + " dilation " +
               std::to_string(g.dilation_w) + " isa " + active_isa());
  const int64_t out_h = conv_out_size(h, g.kernel_h, g.stride_h, 2 * g.pad_top, g.dilation_h);
  const int64_t out_w = conv_out_size(w, g.kernel_w, g.stride_w, 2 * g.pad_left, g.dilation_w);
  if (out_h <= 0 || out_w <= 0) return;
  Activations in(1, h, w, channels, std::max(g.pad_top, g.pad_left), 0, random.below(2) == 0);
  in.fill(random, zero_point);
  const Layer layer({channels, channels, channels, g.kernel_h, g.kernel_w, 8}, random);
  Packed panel(layer);
  Requantization r(layer, zero_point, random, true);
  Codes out(1, out_h, out_w, channels, 1);
  conv_u8(in.view, g, panel.data(), r.e, nullptr, out.view);
  EXPECT_TRUE(out.outside_intact());
  out.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    if (::testing::Test::HasFatalFailure()) return;
    const int64_t sum = exact_sum(in, layer, g, zero_point, n, y, x, c);
    ASSERT_EQ(int{out.at(n, y, x, c)}, int{r.code(sum, c, nullptr)}) << y << " " << x << " " << c;
  });
}

TEST_P(Depthwise, KernelsStridesAndDilations) {
  Random random(71);
  for (int64_t kernel = 1; kernel <= 9; ++kernel) {
    for (const int64_t stride : {1, 2, 3}) {
      for (const int64_t dilation : {1, 2, 3}) {
        for (const int64_t channels : {7, 70}) {
          ConvGeometry g{kernel,     kernel,     stride,   stride,
                         kernel / 2, kernel / 2, dilation, dilation};
          check(channels, 9, 20, g, random, 3);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(Depthwise, ChannelTails) {
  Random random(72);
  for (int64_t channels = 2; channels <= 131; ++channels) {
    check(channels, 3, 5, {3, 3, 1, 1, 1, 1, 1, 1}, random, 200);
    if (HasFatalFailure()) return;
  }
}

/// Rows longer than the interleaving scratch, and kernels that alone are longer.
TEST_P(Depthwise, LongRowsAndKernels) {
  Random random(73);
  check(66, 2, 400, {3, 3, 1, 1, 1, 1, 1, 1}, random, 0);
  check(66, 2, 401, {3, 3, 2, 2, 1, 1, 1, 1}, random, 5);
  check(20, 9, 190, {9, 31, 1, 1, 4, 15, 1, 6}, random, 5);
  check(20, 1, 300, {1, 100, 1, 3, 0, 50, 1, 1}, random, 5);
  check(9, 40, 6, {31, 1, 1, 1, 15, 0, 1, 1}, random, 5);
}

}  // namespace
}  // namespace octavo::testing

// Convolutions of every kind against the int64 reference, bit for bit, on every ISA of this
// machine: geometry, groups, zero points, residuals, slices, float results, threads.
#include "product_test.h"

namespace octavo::testing {
namespace {

struct Case {
  WeightShape shape{};
  ConvGeometry g;
  int64_t n = 1, h = 1, w = 1;
  int64_t pad_bottom = 0, pad_right = 0;
  int32_t zero_point = 0;
  int64_t in_gap = 0, out_gap = 0, out_halo = 0;
  bool residual = false, tell_zero_point = true;
  int32_t activation = -1, weight = 1000;  // constants instead of random codes

  int64_t out_h() const {
    return conv_out_size(h, shape.kernel_h, g.stride_h, g.pad_top + pad_bottom, g.dilation_h);
  }
  int64_t out_w() const {
    return conv_out_size(w, shape.kernel_w, g.stride_w, g.pad_left + pad_right, g.dilation_w);
  }
  /// What a window reaches beyond the image on any side.
  int64_t halo() const {
    const int64_t below =
        (out_h() - 1) * g.stride_h - g.pad_top + (shape.kernel_h - 1) * g.dilation_h - (h - 1);
    const int64_t right =
        (out_w() - 1) * g.stride_w - g.pad_left + (shape.kernel_w - 1) * g.dilation_w - (w - 1);
    return std::max({g.pad_top, g.pad_left, below, right, int64_t{0}});
  }
  std::string text() const {
    std::ostringstream s;
    s << "n " << n << " h " << h << " w " << w << " in " << shape.in_channels << " out "
      << shape.out_channels << " groups " << shape.groups << " kernel " << shape.kernel_h << "x"
      << shape.kernel_w << " stride " << g.stride_h << "," << g.stride_w << " pad " << g.pad_top
      << "," << g.pad_left << "," << pad_bottom << "," << pad_right << " dilation " << g.dilation_h
      << "," << g.dilation_w << " zero_point " << zero_point << " gaps " << in_gap << "," << out_gap
      << " out_halo " << out_halo << " residual " << residual << " bits " << shape.bits << " isa "
      << active_isa();
    return s.str();
  }
};

Case random_case(Random& random) {
  for (;;) {
    Case c;
    const int64_t kind = random.below(8);
    c.shape.bits = random.below(4) == 0 ? 7 : 8;
    c.shape.kernel_h = kind < 2 ? 1 : random.in(1, 7);
    c.shape.kernel_w = kind < 2 ? 1 : random.in(1, 7);
    c.g.kernel_h = c.shape.kernel_h;
    c.g.kernel_w = c.shape.kernel_w;
    c.g.stride_h = random.below(2) == 0 ? 1 : random.in(1, 3);
    c.g.stride_w = random.below(2) == 0 ? 1 : random.in(1, 3);
    c.g.dilation_h = random.below(3) == 0 ? random.in(1, 3) : 1;
    c.g.dilation_w = random.below(3) == 0 ? random.in(1, 3) : 1;
    if (random.below(4) != 0) {
      c.g.pad_top = random.below(c.shape.kernel_h + 2);
      c.g.pad_left = random.below(c.shape.kernel_w + 2);
      c.pad_bottom = random.below(c.shape.kernel_h + 2);
      c.pad_right = random.below(c.shape.kernel_w + 2);
    }
    c.n = random.in(1, 3);
    c.h = random.in(1, 17);
    c.w = random.in(1, 33);
    if (kind == 7) {  // depthwise
      c.shape.groups = c.shape.in_channels = c.shape.out_channels = random.in(2, 140);
    } else if (kind == 6) {  // grouped
      c.shape.groups = random.in(2, 9);
      c.shape.in_channels = c.shape.groups * random.in(1, 9);
      c.shape.out_channels = c.shape.groups * random.in(1, 9);
    } else {
      c.shape.groups = 1;
      c.shape.in_channels = random.below(2) == 0 ? random.in(1, 40) : 4 * random.in(1, 20);
      c.shape.out_channels = random.in(1, random.below(2) == 0 ? 24 : 150);
    }
    const int32_t zero_points[] = {0, 0, 1, 114, 128, 254, 255};
    c.zero_point = zero_points[random.below(7)];
    c.in_gap = random.below(3) == 0 ? random.in(1, 20) : 0;
    c.out_gap = random.below(3) == 0 ? random.in(1, 20) : 0;
    c.out_halo = random.below(3);
    c.residual = random.below(2) == 0;
    c.tell_zero_point = random.below(3) != 0;
    if (c.out_h() > 0 && c.out_w() > 0) return c;
  }
}

/// Both results of one case: codes and floats.
void check(const Case& c, Random& random, Balance* balance) {
  SCOPED_TRACE(c.text());
  Activations in(c.n, c.h, c.w, c.shape.in_channels, c.halo(), c.in_gap, random.below(2) == 0);
  in.fill(random, c.zero_point, c.activation);
  const Layer layer(c.shape, random, c.weight);
  Packed panel(layer);
  ASSERT_EQ(check_panel(panel.data(), panel.size()), PanelCheck::kOk);
  Requantization r(layer, c.zero_point, random, c.tell_zero_point);
  const int64_t out_h = c.out_h(), out_w = c.out_w(), channels = c.shape.out_channels;

  Activations residual(c.n, out_h, out_w, channels, random.below(2), random.below(2) * 5);
  residual.fill(random, 77);
  if (c.residual) r.e.residual_scale = 0.4f * random.real();
  Codes out(c.n, out_h, out_w, channels, c.out_halo, c.out_gap);
  reset_integer_macs();
  conv_u8(in.view, c.g, panel.data(), r.e, c.residual ? &residual.view : nullptr, out.view);
  ASSERT_EQ(integer_macs(), c.n * out_h * out_w * channels * layer.per_channel());
  ASSERT_TRUE(out.outside_intact());

  const char* orders[] = {"nhwc", "nchw", "cnhw"};
  Reals reals(c.n, out_h, out_w, channels, orders[random.below(3)], random.in(1, 2));
  Epilogue f = r.e;
  if (random.below(2) == 0) {
    f.lo = -std::numeric_limits<float>::infinity();
    f.hi = std::numeric_limits<float>::infinity();
  }
  conv_f32(in.view, c.g, panel.data(), f, reals.view);

  for (int64_t n = 0; n < c.n; ++n) {
    for (int64_t y = 0; y < out_h; ++y) {
      for (int64_t x = 0; x < out_w; ++x) {
        for (int64_t o = 0; o < channels; ++o) {
          const int64_t sum = exact_sum(in, layer, c.g, c.zero_point, n, y, x, o);
          const uint8_t* added = c.residual ? &residual.at(n, y, x, o) : nullptr;
          const uint8_t expected = r.code(sum, o, added);
          ASSERT_EQ(int{out.at(n, y, x, o)}, int{expected})
              << "codes at n " << n << " y " << y << " x " << x << " channel " << o;
          if (balance != nullptr) balance->count(expected, r.e);
          Epilogue kept = r.e;
          r.e = f;
          const float real = r.real(sum, o);
          r.e = kept;
          ASSERT_EQ(reals.at(n, y, x, o), real)
              << "floats at n " << n << " y " << y << " x " << x << " channel " << o;
        }
      }
    }
  }
}

class Conv : public IsaTest {};
OCTAVO_FOR_EVERY_ISA(Conv);

TEST_P(Conv, RandomCasesEqualTheReference) {
  Random random(41);
  Balance balance;
  const int cases = ci_suite() ? 4000 : 300;
  for (int i = 0; i < cases && !HasFatalFailure(); ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    check(random_case(random), random, &balance);
  }
  balance.expect();
}

Case layer_case(int64_t n, int64_t size, int64_t in, int64_t out, int64_t kernel, int64_t stride,
                int64_t groups) {
  Case c;
  c.shape = {out, in, groups, kernel, kernel, 8};
  c.g = {kernel, kernel, stride, stride, kernel / 2, kernel / 2, 1, 1};
  c.pad_bottom = c.pad_right = kernel / 2;
  c.n = n;
  c.h = c.w = size;
  return c;
}

/// Layouts with long K steps join the kernel rows of such inputs; one or two pixels and dilated
/// rows take ways of their own.
TEST_P(Conv, InputsOfFewChannelsEqualTheReference) {
  Random random(43);
  const Case cases[] = {
      layer_case(1, 40, 3, 64, 7, 2, 1), layer_case(2, 12, 3, 80, 3, 2, 1),
      layer_case(1, 9, 1, 20, 5, 1, 1),  layer_case(1, 9, 2, 64, 15, 1, 1),
      layer_case(1, 30, 1, 8, 11, 1, 1), layer_case(1, 9, 10, 64, 3, 1, 1),
      layer_case(1, 2, 3, 64, 7, 2, 1),  layer_case(1, 3, 2, 33, 5, 2, 1),
      layer_case(2, 2, 3, 17, 3, 2, 1),
  };
  for (Case c : cases) {
    for (const int64_t dilation : {1, 2}) {
      c.g.dilation_h = c.g.dilation_w = dilation;
      c.g.pad_top = c.g.pad_left = c.pad_bottom = c.pad_right = dilation * (c.g.kernel_h / 2);
      c.zero_point = dilation == 1 ? 37 : 0;
      check(c, random, nullptr);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Conv, ShapesOfRealNetworksEqualTheReference) {
  Random random(42);
  const Case cases[] = {
      layer_case(1, 32, 3, 64, 7, 2, 1),     layer_case(1, 56, 16, 16, 3, 1, 1),
      layer_case(2, 28, 16, 32, 3, 1, 1),    layer_case(1, 14, 64, 96, 3, 1, 1),
      layer_case(3, 7, 64, 64, 3, 1, 1),     layer_case(1, 28, 32, 64, 3, 2, 1),
      layer_case(2, 14, 64, 40, 1, 1, 1),    layer_case(1, 14, 64, 128, 1, 2, 1),
      layer_case(1, 14, 128, 128, 3, 1, 32), layer_case(1, 7, 96, 96, 3, 2, 3),
      layer_case(1, 28, 96, 96, 3, 1, 96),   layer_case(1, 28, 144, 144, 5, 2, 144),
      layer_case(2, 7, 320, 320, 3, 1, 320), layer_case(1, 90, 8, 8, 3, 1, 8),
      layer_case(1, 8, 16, 48, 3, 1, 16),
  };
  for (Case c : cases) {
    for (const int32_t zero_point : {0, 121}) {
      c.zero_point = zero_point;
      c.out_halo = zero_point == 0 ? 1 : 0;
      c.residual = zero_point == 0;
      check(c, random, nullptr);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Conv, OneDimensional) {
  Random random(43);
  for (int i = 0; i < 60; ++i) {
    Case c = random_case(random);
    c.h = c.shape.kernel_h = c.g.kernel_h = 1;
    c.g.pad_top = c.pad_bottom = 0;
    c.w = random.in(8, 120);
    if (c.out_w() <= 0) continue;
    check(c, random, nullptr);
    if (HasFatalFailure()) return;
  }
}

/// All-largest activations times all-smallest and all-largest weights: the ends of every
/// intermediate.
TEST_P(Conv, ExtremesNeitherSaturateNorWrap) {
  Random random(44);
  for (const int64_t in : {1, 2, 3, 4, 16, 63, 64, 65, 256, 513}) {
    for (const int32_t weight : {-128, -127, 127}) {
      for (const int32_t activation : {0, 255}) {
        for (const int32_t zero_point : {0, 255}) {
          for (const int64_t groups : {int64_t{1}, in}) {
            Case c = layer_case(1, 4, in, groups == 1 ? 17 : in, 3, 1, groups);
            c.activation = activation;
            c.weight = weight;
            c.zero_point = zero_point;
            check(c, random, nullptr);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

/// 65,793 products fit int32 at the extremes; more are summed in 64 bits.
TEST_P(Conv, LongSumsAreExact) {
  Random random(45);
  for (const int64_t in : {int64_t{65792}, int64_t{65793}, int64_t{65794}, int64_t{4 * 65793}}) {
    for (const int32_t weight : {-128, 127, 1000}) {
      Case c = layer_case(1, 1, in, 2, 1, 1, 1);
      c.activation = weight == 1000 ? -1 : 255;
      c.weight = weight;
      c.zero_point = in > 65793 ? 3 : 0;
      check(c, random, nullptr);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Conv, EmptySizesDoNothing) {
  Random random(46);
  for (const int zero : {0, 1, 2}) {
    Case c = layer_case(zero == 0 ? 0 : 1, 5, zero == 1 ? 0 : 6, zero == 2 ? 0 : 7, 3, 1, 1);
    Activations in(c.n, c.h, c.w, c.shape.in_channels, 1);
    in.fill(random, 0);
    const Layer layer(c.shape, random);
    Packed panel(layer);
    Requantization r(layer, 0, random, true);
    Codes out(c.n, 5, 5, c.shape.out_channels, 1);
    conv_u8(in.view, c.g, panel.data(), r.e, nullptr, out.view);
    EXPECT_TRUE(out.outside_intact());
    out.each([&](int64_t n, int64_t y, int64_t x, int64_t o) {
      EXPECT_EQ(int{out.at(n, y, x, o)}, int{r.code(0, o, nullptr)});
    });
  }
}

TEST_P(Conv, ThreadsAndModesDoNotChangeBits) {
  Random random(47);
  for (Case c : {layer_case(3, 14, 64, 96, 3, 1, 1), layer_case(2, 28, 200, 200, 3, 1, 200),
                 layer_case(4, 14, 128, 256, 1, 1, 1), layer_case(1, 16, 256, 300, 1, 1, 1)}) {
    Activations in(c.n, c.h, c.w, c.shape.in_channels, c.halo());
    in.fill(random, 9);
    const Layer layer(c.shape, random);
    Packed panel(layer);
    Requantization r(layer, 9, random, true);
    std::vector<uint8_t> first;
    for_each_mode_and_thread_count([&](const std::string& mode, int) {
      Codes out(c.n, c.out_h(), c.out_w(), c.shape.out_channels, 1);
      conv_u8(in.view, c.g, panel.data(), r.e, nullptr, out.view);
      const std::vector<uint8_t> values = out.values();
      if (first.empty()) first = values;
      EXPECT_EQ(values, first) << mode;
    });
  }
}

TEST_P(Conv, DynamicScalesOfSamples) {
  Random random(48);
  for (int i = 0; i < 60; ++i) {
    Case c = random_case(random);
    Activations in(c.n, c.h, c.w, c.shape.in_channels, c.halo(), 0, true, true);
    const Layer layer(c.shape, random);
    Packed panel(layer);
    in.fill(random, 0);
    std::vector<QuantParams> params;
    for (int64_t n = 0; n < c.n; ++n) {
      params.push_back(
          {0.01f + 0.1f * std::fabs(random.real()), static_cast<int32_t>(random.below(256)), 255});
      Image one = in.view;
      one.n = 1;
      one.data += n * in.view.image_pitch;
      fill_halo(one, static_cast<uint8_t>(params.back().zero_point));
    }
    Reals out(c.n, c.out_h(), c.out_w(), c.shape.out_channels,
              random.below(2) == 0 ? "nchw" : "nhwc");
    conv_dynamic(in.view, params.data(), c.g, panel.data(), out.view);
    out.each([&](int64_t n, int64_t y, int64_t x, int64_t o) {
      if (HasFatalFailure()) return;
      const auto sum =
          static_cast<float>(exact_sum(in, layer, c.g, params[n].zero_point, n, y, x, o));
      const float scale = params[n].scale * layer.scale[o];
      ASSERT_EQ(out.at(n, y, x, o), std::fma(sum, scale, layer.bias[o])) << c.text();
    });
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace octavo::testing

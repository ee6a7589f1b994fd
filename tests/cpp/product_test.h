// What the tests of integer products share: activations inside guard pages at exactly the slack
// that tiles may read, the fill rule (ends of the range as often as its inside), packed layers, and
// an int64 reference that shares no code with the kernels.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "element_test.h"

namespace octavo::testing {

/// A u8 image with kSlack readable bytes around it and unreadable pages beyond. Slack is poisoned
/// with 0xff.
class Activations {
 public:
  Activations(int64_t n, int64_t h, int64_t w, int64_t c, int64_t halo = 0, int64_t gap = 0,
              bool end_at_page = true, bool apart = false) {
    view.n = n, view.h = h, view.w = w, view.c = c, view.halo = halo;
    view.pixel_pitch = c + gap;
    view.row_pitch = (w + halo) * view.pixel_pitch;
    // Images whose halos differ may not share the corner pixels.
    view.image_pitch = (h + 2 * halo) * view.row_pitch + (apart ? halo * view.pixel_pitch : 0);
    const int64_t before = halo * view.row_pitch + halo * view.pixel_pitch;
    content_ = n * view.image_pitch + halo * view.pixel_pitch;
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t bytes = content_ + 2 * kSlack;
    mapped_ = (bytes + page - 1) / page * page + 2 * page;
    base_ = static_cast<uint8_t*>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::abort();
    std::memset(base_, 0xff, mapped_);
    if (mprotect(base_, page, PROT_NONE) != 0) std::abort();
    if (mprotect(base_ + mapped_ - page, page, PROT_NONE) != 0) std::abort();
    first_ = end_at_page ? base_ + mapped_ - page - kSlack - content_ : base_ + page + kSlack;
    view.data = first_ + before;
  }
  Activations(const Activations&) = delete;
  Activations& operator=(const Activations&) = delete;
  ~Activations() { munmap(base_, mapped_); }

  /// Halo and gaps get `zero_point`, the image gets random codes (all `constant` if that is not
  /// negative).
  void fill(Random& random, int32_t zero_point, int32_t constant = -1) {
    std::memset(first_, zero_point, content_);
    for (int64_t n = 0; n < view.n; ++n) {
      for (int64_t y = 0; y < view.h; ++y) {
        for (int64_t x = 0; x < view.w; ++x) {
          for (int64_t c = 0; c < view.c; ++c) {
            at(n, y, x, c) = constant >= 0 ? static_cast<uint8_t>(constant) : random.code();
          }
        }
      }
    }
  }
  uint8_t& at(int64_t n, int64_t y, int64_t x, int64_t c) {
    return view.data[n * view.image_pitch + y * view.row_pitch + x * view.pixel_pitch + c];
  }

  Image view;

 private:
  int64_t content_, mapped_;
  uint8_t* base_;
  uint8_t* first_;
};

/// A layer: codes in torch's order, scales, bias.
struct Layer {
  WeightShape shape{};
  std::vector<int8_t> codes;
  std::vector<float> scale, bias;

  Layer(WeightShape s, Random& random, int32_t constant = 1000) : shape(s) {
    const int32_t largest = (1 << (s.bits - 1)) - 1, smallest = -largest - 1;
    codes.resize(s.out_channels * per_channel());
    for (auto& code : codes) {
      const int32_t special[] = {smallest, smallest + 1, -1, 0, 1, largest - 1, largest};
      const int64_t k = random.below(14);
      code = static_cast<int8_t>(constant != 1000 ? constant
                                 : k < 7          ? special[k]
                                                  : random.in(smallest, largest));
    }
    for (int64_t o = 0; o < s.out_channels; ++o) {
      scale.push_back(0.001f + 0.01f * std::fabs(random.real()));
      bias.push_back(3.0f * random.real());
    }
  }
  int64_t per_channel() const {
    return shape.in_channels / shape.groups * shape.kernel_h * shape.kernel_w;
  }
  int64_t column_sum(int64_t o) const {
    int64_t sum = 0;
    for (int64_t k = 0; k < per_channel(); ++k) sum += codes[o * per_channel() + k];
    return sum;
  }
};

/// The layer's panel for the active ISA, 64-byte aligned and followed by an unreadable page.
class Packed {
 public:
  explicit Packed(const Layer& layer)
      : header_(panel_header(layer.shape)), memory_((header_.total_bytes + 63) / 64 * 64) {
    pack_panel(header_, layer.codes.data(), layer.scale.data(), layer.bias.data(), memory_.data());
  }
  const void* data() { return memory_.data(); }
  uint8_t* bytes() { return memory_.data(); }
  int64_t size() const { return header_.total_bytes; }

 private:
  PanelHeader header_;
  Guarded<uint8_t> memory_;
};

/// sum of (x - z) * w over the kernel window of output (n, y, x), channel o; outside the image x =
/// z.
inline int64_t exact_sum(Activations& in, const Layer& layer, const ConvGeometry& g, int32_t z,
                         int64_t n, int64_t y, int64_t x, int64_t o) {
  const WeightShape& s = layer.shape;
  const int64_t group_in = s.in_channels / s.groups, group_out = s.out_channels / s.groups;
  const int64_t first = o / group_out * group_in;
  int64_t sum = 0;
  for (int64_t i = 0; i < g.kernel_h; ++i) {
    for (int64_t j = 0; j < g.kernel_w; ++j) {
      const int64_t row = y * g.stride_h - g.pad_top + i * g.dilation_h;
      const int64_t column = x * g.stride_w - g.pad_left + j * g.dilation_w;
      if (row < 0 || row >= in.view.h || column < 0 || column >= in.view.w) continue;
      for (int64_t c = 0; c < group_in; ++c) {
        const int64_t w = layer.codes[((o * group_in + c) * s.kernel_h + i) * s.kernel_w + j];
        sum += (int64_t{in.at(n, row, column, first + c)} - z) * w;
      }
    }
  }
  return sum;
}

/// Multipliers and offsets that spread results over the codes and beyond.
struct Requantization {
  std::vector<int32_t> start;
  std::vector<float> scale, offset;
  Epilogue e;

  Requantization(const Layer& layer, int32_t z, Random& random, bool tell_zero_point) {
    const double spread = std::sqrt(static_cast<double>(layer.per_channel()) + 1.0) * 100.0 *
                          (layer.shape.bits == 8 ? 90.0 : 20.0);
    for (int64_t o = 0; o < layer.shape.out_channels; ++o) {
      start.push_back(static_cast<int32_t>(-z * layer.column_sum(o)));
      const float sign = random.below(8) == 0 ? -1.0f : 1.0f;
      scale.push_back(sign * static_cast<float>(80.0 / spread) * (1.0f + 0.5f * random.real()));
      offset.push_back(120.0f + 60.0f * random.real());
    }
    e.start = start.data();
    e.scale = scale.data();
    e.offset = offset.data();
    if (random.below(3) == 0) {
      e.lo = static_cast<float>(random.in(0, 60));
      e.hi = static_cast<float>(random.in(150, 255));
    }
    e.zero_point = tell_zero_point ? z : -1;
  }

  uint8_t code(int64_t sum, int64_t o, const uint8_t* residual) const {
    float v = std::fma(static_cast<float>(sum), scale[o], offset[o]);
    if (residual != nullptr) v = std::fma(static_cast<float>(*residual), e.residual_scale, v);
    return static_cast<uint8_t>(clamped(v, e.lo, e.hi));
  }
  float real(int64_t sum, int64_t o) const {
    const float v = std::fma(static_cast<float>(sum), scale[o], offset[o]);
    return v < e.lo ? e.lo : v > e.hi ? e.hi : v;
  }
};

/// Counts results inside and at the ends, so that a test cannot pass on saturated values alone.
struct Balance {
  int64_t inside = 0, at_ends = 0;
  void count(uint8_t code, const Epilogue& e) {
    (static_cast<float>(code) > e.lo && static_cast<float>(code) < e.hi ? inside : at_ends) += 1;
  }
  void expect() const {
    EXPECT_GE(inside * 10, (inside + at_ends) * 3) << "too many results are clamped";
    EXPECT_GE(at_ends * 100, inside + at_ends) << "too few results are clamped";
  }
};

}  // namespace octavo::testing

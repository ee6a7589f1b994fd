// What the tests of the element kernels share: the ISAs of this machine as a parameter, buffers
// that end at an unreadable page, images with halo and gaps whose bytes outside the image are
// watched, seeded values, and the floating-point modes of a hostile caller. Shares nothing with the
// kernels but kernels.h and types.h.
#pragma once

#include <gtest/gtest.h>
#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "dispatch.h"
#include "kernels.h"
#include "types.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace octavo::testing {

inline std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < isa_count(); ++i) {
    if (isa_available(i)) names.push_back(isa_name(i));
  }
  return names;
}

/// Runs each test once per ISA, and proves that the ISA is the one that runs.
class IsaTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ASSERT_EQ(set_isa(GetParam().c_str()), SetIsa::kOk);
    ASSERT_EQ(active_isa(), GetParam());
  }
  void TearDown() override { set_isa(""); }
};

#define OCTAVO_FOR_EVERY_ISA(suite)                                                             \
  INSTANTIATE_TEST_SUITE_P(Isas, suite, ::testing::ValuesIn(octavo::testing::available_isas()), \
                           [](const auto& info) { return info.param; })

/// Sizes grow with OCTAVO_SUITE=ci.
inline bool ci_suite() {
  const char* suite = std::getenv("OCTAVO_SUITE");
  return suite != nullptr && std::strcmp(suite, "ci") == 0;
}

/// xorshift64*: the same values on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t bits() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }
  int64_t below(int64_t n) {
    return static_cast<int64_t>((bits() >> 16) % static_cast<uint64_t>(n));
  }
  int64_t in(int64_t first, int64_t last) { return first + below(last - first + 1); }
  /// Uniform in [-1, 1).
  float real() { return static_cast<float>(below(1 << 24)) * 0x1p-23f - 1.0f; }
  /// Ends of the range as often as its inside.
  uint8_t code() {
    const uint8_t special[] = {0, 1, 2, 127, 128, 129, 254, 255};
    const int64_t k = below(16);
    return k < 8 ? special[k] : static_cast<uint8_t>(below(256));
  }
  /// Values near `spread`, ties of `step`, and everything that float32 has at its ends.
  float value(float spread, float step) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const float special[] = {0.0f,      -0.0f,      kInfinity, -kInfinity, NAN,
                             -NAN,      1e30f,      -1e30f,    0x1p-149f,  -0x1p-149f,
                             0x1p-130f, -0x1p-130f, 3.4e38f,   -3.4e38f};
    const int64_t k = below(64);
    if (k < 14) return special[k];
    if (k < 32) return step * (0.5f + static_cast<float>(in(-300, 300)));
    return spread * real();
  }

 private:
  uint64_t state_;
};

/// `count` values whose last byte is followed by an unreadable page; bytes before it are watched.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : count_(count) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T)) + kWatched;
    mapped_ = (bytes + page - 1) / page * page + page;
    base_ = static_cast<uint8_t*>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::abort();
    if (mprotect(base_ + mapped_ - page, page, PROT_NONE) != 0) std::abort();
    data_ = reinterpret_cast<T*>(base_ + mapped_ - page - count * static_cast<int64_t>(sizeof(T)));
    std::memset(base_, kSentinel, mapped_ - page);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() {
    EXPECT_TRUE(front_intact()) << "bytes before the buffer were written";
    munmap(base_, mapped_);
  }
  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t size() const { return count_; }
  std::vector<T> copy() const { return std::vector<T>(data_, data_ + count_); }

  static constexpr uint8_t kSentinel = 0xa5;

 private:
  bool front_intact() const {
    const auto* end = reinterpret_cast<const uint8_t*>(data_);
    for (const uint8_t* p = end - kWatched; p < end; ++p) {
      if (*p != kSentinel) return false;
    }
    return true;
  }
  static constexpr int64_t kWatched = 128;
  int64_t count_, mapped_;
  uint8_t* base_;
  T* data_;
};

/// A u8 image in guarded memory: `halo` around it, `gap` bytes after every pixel, `row_gap` after
/// every row.
class Codes {
 public:
  Codes(int64_t n, int64_t h, int64_t w, int64_t c, int64_t halo = 0, int64_t gap = 0,
        int64_t row_gap = 0)
      : pitch_(c + gap),
        row_((w + halo) * pitch_ + row_gap),
        image_((h + 2 * halo) * row_),
        before_(halo * row_ + halo * pitch_),
        bytes_(bytes(n, h, w, c, halo)) {
    view.data = bytes_.data() + before_;
    view.n = n, view.h = h, view.w = w, view.c = c, view.halo = halo;
    view.pixel_pitch = pitch_, view.row_pitch = row_, view.image_pitch = image_;
  }
  uint8_t& at(int64_t n, int64_t y, int64_t x, int64_t c) {
    return view.data[n * image_ + y * row_ + x * pitch_ + c];
  }
  void fill(Random& random) {
    each([&](int64_t n, int64_t y, int64_t x, int64_t c) { at(n, y, x, c) = random.code(); });
  }
  template <class F>
  void each(F&& f) const {
    for (int64_t n = 0; n < view.n; ++n) {
      for (int64_t y = 0; y < view.h; ++y) {
        for (int64_t x = 0; x < view.w; ++x) {
          for (int64_t c = 0; c < view.c; ++c) f(n, y, x, c);
        }
      }
    }
  }
  /// All bytes, with those of the image set to the sentinel: equal to untouched() if nothing else
  /// was written.
  bool outside_intact() {
    std::vector<uint8_t> bytes = bytes_.copy();
    each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
      bytes[before_ + n * image_ + y * row_ + x * pitch_ + c] = Guarded<uint8_t>::kSentinel;
    });
    for (const uint8_t b : bytes) {
      if (b != Guarded<uint8_t>::kSentinel) return false;
    }
    return true;
  }
  std::vector<uint8_t> values() {
    std::vector<uint8_t> result;
    each([&](int64_t n, int64_t y, int64_t x, int64_t c) { result.push_back(at(n, y, x, c)); });
    return result;
  }

  Image view;

 private:
  int64_t bytes(int64_t n, int64_t h, int64_t w, int64_t c, int64_t halo) const {
    if (n * h * w * c == 0) return before_ + n * image_ + halo * pitch_;
    const int64_t last_pixel = (n - 1) * image_ + (h + halo - 1) * row_ + (w + halo - 1) * pitch_;
    return before_ + last_pixel + c;
  }
  int64_t pitch_, row_, image_, before_;
  Guarded<uint8_t> bytes_;
};

/// A float image in guarded memory. Order: which dimension is innermost last, e.g. "nchw", "nhwc",
/// "cwnh"; step: distance of neighbours in the innermost dimension.
class Reals {
 public:
  Reals(int64_t n, int64_t h, int64_t w, int64_t c, const std::string& order = "nchw",
        int64_t step = 1)
      : values_(extent(n, h, w, c, order, step)) {
    view.data = values_.data();
    view.n = n, view.h = h, view.w = w, view.c = c;
    int64_t stride = step;
    for (auto it = order.rbegin(); it != order.rend(); ++it) {
      if (*it == 'n') view.stride_n = stride, stride *= n;
      if (*it == 'h') view.stride_h = stride, stride *= h;
      if (*it == 'w') view.stride_w = stride, stride *= w;
      if (*it == 'c') view.stride_c = stride, stride *= c;
    }
  }
  float& at(int64_t n, int64_t y, int64_t x, int64_t c) {
    return view.data[n * view.stride_n + y * view.stride_h + x * view.stride_w + c * view.stride_c];
  }
  template <class F>
  void each(F&& f) const {
    for (int64_t n = 0; n < view.n; ++n) {
      for (int64_t c = 0; c < view.c; ++c) {
        for (int64_t y = 0; y < view.h; ++y) {
          for (int64_t x = 0; x < view.w; ++x) f(n, y, x, c);
        }
      }
    }
  }
  FloatImage view;

 private:
  static int64_t extent(int64_t n, int64_t h, int64_t w, int64_t c, const std::string& order,
                        int64_t step) {
    (void)order;
    const int64_t count = n * h * w * c;
    return count == 0 ? 0 : (count - 1) * step + 1;
  }
  Guarded<float> values_;
};

/// Nearest integer, ties to even, in double and independent of the rounding mode.
inline double nearest(double v) {
  const double below = std::floor(v), rest = v - below;
  if (rest > 0.5) return below + 1.0;
  if (rest < 0.5) return below;
  return std::fmod(below, 2.0) == 0.0 ? below : below + 1.0;
}

/// Clamp, then round; NaN gives lo.
inline int32_t clamped(double v, double lo, double hi) {
  if (!(v > lo)) return static_cast<int32_t>(lo);
  return static_cast<int32_t>(nearest(v < hi ? v : hi));
}

/// Calls f under every rounding mode, with and without flush-to-zero, and then restores the modes.
inline void for_each_mode(const std::function<void(const std::string&)>& f) {
  const struct {
    const char* name;
    int mode;
  } modes[] = {
      {"nearest", FE_TONEAREST}, {"down", FE_DOWNWARD}, {"up", FE_UPWARD}, {"zero", FE_TOWARDZERO}};
  for (const auto& mode : modes) {
    for (const bool flush : {false, true}) {
#if defined(__x86_64__)
      const unsigned saved = _mm_getcsr();
      if (flush) _mm_setcsr(saved | 0x8040);
#endif
      std::fesetround(mode.mode);
      f(std::string(mode.name) + (flush ? ", flush to zero" : ""));
      std::fesetround(FE_TONEAREST);
#if defined(__x86_64__)
      _mm_setcsr(saved);
#endif
    }
  }
}

/// Calls f with 1, 2 and 4 threads.
inline void for_each_thread_count(const std::function<void(int)>& f) {
  const int before = omp_get_max_threads();
  for (const int threads : {1, 2, 4}) {
    omp_set_num_threads(threads);
    f(threads);
  }
  omp_set_num_threads(before);
}

/// Calls f(mode, threads): in every mode with one thread and with every number of threads in one
/// mode; with OCTAVO_SUITE=ci in every mode with every number of threads.
inline void for_each_mode_and_thread_count(const std::function<void(const std::string&, int)>& f) {
  for_each_thread_count([&](int threads) {
    for_each_mode([&](const std::string& mode) {
      if (ci_suite() || threads == 1 || mode == "up, flush to zero") f(mode, threads);
    });
  });
}

}  // namespace octavo::testing

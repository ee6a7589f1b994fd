// Calls from many threads at once: first uses, shared weights, caches, packing and changes of the
// instruction set meanwhile. An executable of its own without OpenMP, whose runtime the
// thread sanitizer cannot see into: here the pool is std::thread's.
#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>

#include "dispatch.h"
#include "kernels.h"
#include "parallel.h"
#include "region/builder.h"
#include "region/call.h"

namespace octavo {
namespace {

constexpr int kCallers = 6;
constexpr int kPieces = 3;

void run_threads(int64_t begin, int64_t end, int64_t grain, RangeFunction body, void* context) {
  const int64_t pieces = std::min<int64_t>(kPieces, (end - begin + grain - 1) / grain);
  const int64_t size = (end - begin + pieces - 1) / pieces;
  std::vector<std::thread> threads;
  for (int64_t first = begin + size; first < end; first += size) {
    threads.emplace_back([=] { body(context, first, std::min(end, first + size)); });
  }
  body(context, begin, std::min(end, begin + size));
  for (std::thread& thread : threads) thread.join();
}

const bool installed = [] {
  set_parallel(run_threads, [] { return kPieces; });
  return true;
}();

/// Runs work(i) in several threads that begin together.
void at_once(const std::function<void(int)>& work) {
  std::barrier start(kCallers);
  std::vector<std::thread> threads;
  for (int i = 0; i < kCallers; ++i) {
    threads.emplace_back([&, i] {
      start.arrive_and_wait();
      work(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// A small network with every way in which a region shares out its work.
struct Network {
  RegionBuilder b;
  std::vector<RegionPanel> panels;
  std::vector<float> memory;
  RegionInput input;

  Network(uint64_t seed, int64_t images) : b(seed) {
    const std::string same = " kernel=3,3 stride=1,1 pad=1,1,1,1 dilation=1,1";
    auto panel = [](int index) { return " panel=" + std::to_string(index); };
    auto x = [](int id) { return " x=" + std::to_string(id); };
    const int q = b.step("quantize in=0 layout=image" + b.params());
    const int c = b.step("conv" + x(q) + panel(b.weight(24, 3, 1, 3, 3)) + " channels=24" + same +
                         b.params() + b.clamp());
    const int d = b.step("conv" + x(c) + panel(b.weight(24, 24, 24, 3, 3)) + " channels=24" + same +
                         b.params() + b.clamp());
    const int sum = b.step("add" + x(c) + " y=" + std::to_string(d) + b.params() + b.clamp());
    const int pool = b.step("adaptive_avg_pool" + x(sum) + " size=1,1" + b.params());
    const int flat = b.step("flatten" + x(pool));
    const int linear = b.step("linear_f32" + x(flat) + panel(b.weight(10, 24, 1, 1, 1)) +
                              " channels=10 lo=-inf hi=inf");
    const int dynamic = b.step("quantize_dynamic in=0 layout=image max=255");
    const int conv =
        b.step("conv_dynamic" + x(dynamic) + panel(b.weight(7, 3, 1, 3, 3)) + " channels=7" + same);
    b.out(linear), b.out(conv);
    panels = b.panels();
    input.sizes = {images, 3, 12, 12};
    input.strides = {432, 144, 12, 1};
    memory.resize(static_cast<size_t>(images * 432));
    for (float& v : memory) v = b.real(-2.0f, 2.0f);
    input.data = memory.data();
  }

  std::vector<float> run() const {
    AlignedBytes constants(region_constants_bytes(b.text, panels));
    make_region_constants(b.text, panels, constants.data());
    const std::vector<RegionInput> inputs{input};
    const RegionCall call(b.text, inputs, panels, constants.data(), constants.count());
    std::vector<float> results;
    std::vector<RegionOutput> outputs;
    std::vector<int64_t> counts;
    for (size_t o = 0; o < call.output_count(); ++o) {
      const std::vector<int64_t> sizes = call.output_sizes(o);
      RegionOutput output;
      output.strides.resize(sizes.size());
      int64_t stride = 1;
      for (size_t i = sizes.size(); i-- > 0; stride *= sizes[i]) output.strides[i] = stride;
      counts.push_back(stride);
      outputs.push_back(output);
    }
    results.resize(static_cast<size_t>(std::accumulate(counts.begin(), counts.end(), int64_t{0})));
    float* next = results.data();
    for (size_t o = 0; o < outputs.size(); next += counts[o++]) outputs[o].data = next;
    call.run(outputs);
    return results;
  }
};

/// A packed weight of 4 bits in groups.
struct Packed {
  std::vector<uint8_t> codes;
  std::vector<float> scale, x;
  LowbitWeight weight{};

  explicit Packed(uint64_t seed) : codes(96 * 128), scale(96 * 4), x(5 * 128) {
    RegionBuilder b(seed);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(b.pick(0, 15));
    for (float& s : scale) s = std::ldexp(1.0f, static_cast<int>(b.pick(-8, -4)));
    for (float& v : x) v = b.real(-2.0f, 2.0f);
    weight = {LowbitOrder::kColumns, LowbitKind::kSymmetric, 4,       96,      128,    32,
              codes.data(),          scale.data(),           nullptr, nullptr, nullptr};
  }
  AlignedBytes pack() const {
    AlignedBytes bytes(lowbit_bytes(weight));
    pack_lowbit(weight, bytes.data());
    return bytes;
  }
  std::vector<float> multiply(const void* packed) const {
    std::vector<float> y(5 * 96);
    linear_lowbit(x.data(), 5, 128, packed, y.data(), 96);
    return y;
  }
};

/// Values whose results are the same on every instruction set.
std::vector<float> fake_quantized(const std::vector<float>& x) {
  const float scale = 0.05f, zero = 7.0f;
  const auto count = static_cast<int64_t>(x.size());
  const FakeSteps steps{1, 1, count, count, 0, 15, false, false, &scale, &zero};
  std::vector<float> y(x.size());
  std::vector<uint8_t> mask(x.size() / 8 + 1);
  fake_quantize(FloatType::kF32, x.data(), steps, y.data(), mask.data());
  const MinMax range = minmax(x.data(), count);
  y.push_back(range.min), y.push_back(range.max);
  return y;
}

// First in the file: nothing has chosen an instruction set or planned a region yet.
TEST(Threads, FirstUse) {
  std::vector<std::vector<float>> results(kCallers);
  at_once([&](int i) { results[static_cast<size_t>(i)] = Network(1, 4).run(); });
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
  EXPECT_EQ(results[0], Network(1, 4).run());
}

TEST(Threads, OneNetworkAtOnce) {
  const Network network(2, 8);
  const std::vector<float> expected = network.run();
  std::atomic<int> wrong{0};
  at_once([&](int) {
    for (int round = 0; round < 10; ++round) wrong += network.run() != expected;
  });
  EXPECT_EQ(wrong, 0);
}

// More programs and sizes than the caches keep, so that entries leave while others are in use.
TEST(Threads, CachesOverflow) {
  std::vector<Network> networks;
  for (uint64_t i = 0; i < 300; ++i) networks.emplace_back(i, 1 + static_cast<int64_t>(i % 3));
  // A moved vector keeps its memory, so inputs still point to their own.
  std::vector<std::vector<float>> expected;
  for (const Network& network : networks) expected.push_back(network.run());
  std::atomic<int> wrong{0};
  at_once([&](int caller) {
    for (size_t i = 0; i < networks.size(); ++i) {
      const size_t at = (i + static_cast<size_t>(caller) * 50) % networks.size();
      wrong += networks[at].run() != expected[at];
    }
  });
  EXPECT_EQ(wrong, 0);
}

TEST(Threads, PacksWhileOthersMultiply) {
  const Packed shared(3);
  const AlignedBytes packed = shared.pack();
  const std::vector<float> expected = shared.multiply(packed.data());
  const Network network(4, 3);
  const std::vector<float> of_network = network.run();
  std::atomic<int> wrong{0};
  at_once([&](int caller) {
    for (int round = 0; round < 20; ++round) {
      if (caller % 3 == 0) {
        wrong += shared.multiply(packed.data()) != expected;
      } else if (caller % 3 == 1) {
        const AlignedBytes again = shared.pack();
        wrong += std::memcmp(again.data(), packed.data(), static_cast<size_t>(packed.count())) != 0;
      } else {
        wrong += network.run() != of_network;
        wrong += Network(4, 3).run() != of_network;
      }
    }
  });
  EXPECT_EQ(wrong, 0);
}

/// What a call of every driver with a kernel table gives, with panels that one instruction set has
/// packed.
class AllDrivers {
 public:
  AllDrivers()
      : network_(7, 8), packed_(6), lowbit_(packed_.pack()), row_lookup_(rows().pack()), x_(50000) {
    for (float& v : x_) v = builder_.real(-2.0f, 2.0f);
    builder_.weight(4 * kWidth, kWidth, 1, 1, 1);
    panels_ = builder_.panels();
  }

  /// Packs once more and calls everything.
  std::vector<float> run() const {
    std::vector<float> y = network_.run();
    append(&y, Network(7, 8).run());
    append(&y, fake_quantized(x_));
    const void* panel = panels_[0].data;
    for (const int64_t m : {1, 40}) append(&y, linear(m, panel));
    const AlignedBytes again = pack_again(panel);
    append(&y, linear(3, again.data()));
    append(&y, recurrent_layer(panel));
    append(&y, low_bits());
    append(&y, observations());
    return y;
  }

 private:
  static constexpr int64_t kWidth = 64;

  static Packed rows() {
    Packed p(6);
    p.weight.order = LowbitOrder::kRows;
    return p;
  }
  static void append(std::vector<float>* y, const std::vector<float>& more) {
    y->insert(y->end(), more.begin(), more.end());
  }

  std::vector<float> linear(int64_t m, const void* panel) const {
    std::vector<float> y(static_cast<size_t>(2 * m * 4 * kWidth));
    linear_dynamic(x_.data(), m, kWidth, kWidth, panel, y.data(), 4 * kWidth);
    linear_static(x_.data(), m, kWidth, kWidth, {0.02f, 128, 255}, panel, y.data() + m * 4 * kWidth,
                  4 * kWidth);
    return y;
  }

  /// The codes packed for whatever instruction set is active now, with other scales.
  AlignedBytes pack_again(const void* panel) const {
    std::vector<int8_t> codes(4 * kWidth * kWidth);
    unpack_panel(panel, codes.data());
    const std::vector<float> scale(4 * kWidth, 0.01f);
    const PanelHeader header = panel_header({4 * kWidth, kWidth, 1, 1, 1, 8});
    AlignedBytes bytes(header.total_bytes);
    pack_panel(header, codes.data(), scale.data(), nullptr, bytes.data());
    EXPECT_EQ(check_panel(bytes.data(), bytes.count()), PanelCheck::kOk);
    return bytes;
  }

  std::vector<float> recurrent_layer(const void* panel) const {
    constexpr int64_t kTimes = 3, kRows = 5;
    const std::vector<int64_t> sizes(kTimes, kRows);
    std::vector<float> h(kRows * kWidth), c(kRows * kWidth), y(kTimes * kRows * kWidth);
    Recurrence r{};
    r.mode = RecurrentMode::kLstm;
    r.times = kTimes;
    r.batch_sizes = sizes.data();
    r.width = kWidth;
    r.gates = x_.data();
    r.h = h.data(), r.c = c.data(), r.y = y.data();
    HiddenWeight w{};
    w.weight = panel;
    recurrent(r, w);
    append(&y, c);
    return y;
  }

  std::vector<float> low_bits() const {
    std::vector<float> y;
    for (const int64_t m : {1, 5, 60}) {
      std::vector<float> product(static_cast<size_t>(2 * m * 96));
      linear_lowbit(x_.data(), m, 128, lowbit_.data(), product.data(), 96);
      linear_lowbit_float(x_.data(), m, 128, lowbit_.data(), product.data() + m * 96, 96);
      append(&y, product);
    }
    std::vector<int64_t> indices(96);
    std::iota(indices.begin(), indices.end(), 0);
    std::vector<float> found(96 * 128);
    embedding_lowbit(indices.data(), 96, row_lookup_.data(), found.data());
    append(&y, found);
    const AlignedBytes again = packed_.pack();
    EXPECT_EQ(std::memcmp(again.data(), lowbit_.data(), static_cast<size_t>(again.count())), 0);
    return y;
  }

  std::vector<float> observations() const {
    const auto count = static_cast<int64_t>(x_.size());
    std::vector<uint8_t> codes(x_.size());
    quantize(x_.data(), count, {0.02f, 100, 255}, codes.data());
    std::vector<float> y(x_.size());
    dequantize(codes.data(), count, {0.02f, 100, 255}, y.data());
    MinMax range[50];
    observed_ranges(FloatType::kF32, x_.data(), 20, 50, 50, true, range);
    for (const MinMax& r : range) y.push_back(r.min), y.push_back(r.max);
    observed_ranges(FloatType::kBf16, x_.data(), 1, 1, 2 * count, false, range);
    y.push_back(range[0].min), y.push_back(range[0].max);
    const MinMax best = shrunk(x_.data(), kRangeSample, false, {0, 15, false}, {-2.0f, 2.0f, 0});
    y.push_back(best.min), y.push_back(best.max);
    std::vector<int64_t> bins(64);
    histogram(x_.data(), count, -4, -32, 64, bins.data());
    for (const int64_t bin : bins) y.push_back(static_cast<float>(bin));
    return y;
  }

  Network network_;
  Packed packed_;
  AlignedBytes lowbit_, row_lookup_;
  std::vector<float> x_;
  RegionBuilder builder_{5};
  std::vector<RegionPanel> panels_;
};

// A call takes its kernels once, by its panel or by the instruction set that is active then: panels
// of any instruction set give the same bits, whichever others choose meanwhile.
TEST(Threads, TheInstructionSetChangesWhileAllDriversRun) {
  const std::string before = active_isa();
  std::vector<std::unique_ptr<AllDrivers>> drivers;
  std::vector<float> expected;
  for (int isa = 0; isa < isa_count(); ++isa) {
    if (!isa_available(isa)) continue;
    ASSERT_EQ(set_isa(isa_name(isa)), SetIsa::kOk);
    drivers.push_back(std::make_unique<AllDrivers>());
    if (expected.empty()) expected = drivers[0]->run();
  }
  std::atomic<int> wrong{0}, working{kCallers - 1};
  at_once([&](int caller) {
    if (caller == 0) {
      for (int i = 0; working > 0; ++i) {
        const int isa = i % isa_count();
        if (isa_available(isa)) wrong += set_isa(isa_name(isa)) != SetIsa::kOk;
      }
      return;
    }
    for (size_t round = 0; round < 3 * drivers.size(); ++round) {
      wrong += drivers[(round + static_cast<size_t>(caller)) % drivers.size()]->run() != expected;
    }
    --working;
  });
  EXPECT_EQ(set_isa(before.c_str()), SetIsa::kOk);
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace octavo

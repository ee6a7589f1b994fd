// Times the integer products on layers of ResNet-18, ResNet-50 and MobileNetV2 and on linear
// layers, one thread, and states each as a share of what a loop of dot products in registers
// reaches on the same machine in the same run.
//
//   kernel_bench [isa ...]     default: every ISA of this machine; OCTAVO_BENCH_THREADS=2 for more
//   threads
//
// Rounds go over all layers again and again and the least time of each counts, so that a
// neighbour's burst hits one round, not one layer.
#include "kernels.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "dispatch.h"

namespace octavo {
namespace {

double seconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

struct FreeMemory {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, FreeMemory>;

Memory allocate(int64_t bytes) {
  const auto size = static_cast<size_t>((bytes + 127) / 64 * 64);
  void* p = std::aligned_alloc(64, size);
  std::memset(p, 0, size);
  return Memory(p);
}

uint64_t random_state = 88172645463325252ull;
uint32_t random_bits() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 16);
}
/// Roughly gaussian weights, half-rectified activations: what networks hold (AMX's clock depends on
/// data).
int8_t random_weight() {
  int32_t sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<int32_t>(random_bits() % 64);
  return static_cast<int8_t>(sum - 126);
}
uint8_t random_activation() {
  const int32_t v = random_weight();
  return static_cast<uint8_t>(v > 0 ? v : 0);
}

/// An image with its memory.
struct Buffer {
  Image view;
  Memory memory;

  Buffer(int64_t n, int64_t h, int64_t w, int64_t c, int64_t halo) {
    view = {nullptr, n, h, w, c, halo, c, (w + halo) * c, (h + 2 * halo) * (w + halo) * c};
    const int64_t bytes = n * view.image_pitch + 2 * halo * c;
    memory = allocate(bytes + 2 * kSlack);
    view.data = static_cast<uint8_t*>(memory.get()) + kSlack + halo * view.row_pitch + halo * c;
    for (int64_t y = 0; y < n * h; ++y) {
      for (int64_t x = 0; x < w * c; ++x) {
        view.data[y / h * view.image_pitch + y % h * view.row_pitch + x] = random_activation();
      }
    }
  }
};

struct Shape {
  const char* net;
  const char* name;
  int64_t n, size, in, out, kernel, stride, groups;
  bool residual;
};

class ConvLayer {
 public:
  explicit ConvLayer(const Shape& s)
      : shape_(s),
        out_size_((s.size - 1) / s.stride + 1),
        in_(s.n, s.size, s.size, s.in, s.kernel / 2),
        residual_(s.n, out_size_, out_size_, s.out, 1),
        out_(s.n, out_size_, out_size_, s.out, 1) {
    const WeightShape weight{s.out, s.in, s.groups, s.kernel, s.kernel, 8};
    std::vector<int8_t> codes(static_cast<size_t>(s.out * s.in / s.groups * s.kernel * s.kernel));
    for (auto& code : codes) code = random_weight();
    const auto out = static_cast<size_t>(s.out);
    scale_.assign(out, 0.001f);
    offset_.assign(out, 10.0f);
    start_.assign(out, 0);
    const PanelHeader header = panel_header(weight);
    panel_ = allocate(header.total_bytes);
    pack_panel(header, codes.data(), scale_.data(), nullptr, panel_.get());
    epilogue_.start = start_.data();
    epilogue_.scale = scale_.data();
    epilogue_.offset = offset_.data();
    epilogue_.residual_scale = 0.5f;
    epilogue_.zero_point = 0;
    geometry_ = {s.kernel, s.kernel, s.stride, s.stride, s.kernel / 2, s.kernel / 2, 1, 1};
  }
  void run() {
    conv_u8(in_.view, geometry_, panel_.get(), epilogue_,
            shape_.residual ? &residual_.view : nullptr, out_.view);
  }
  double macs() const {
    return 1.0 * static_cast<double>(shape_.n * out_size_ * out_size_ * shape_.out) *
           static_cast<double>(shape_.in / shape_.groups * shape_.kernel * shape_.kernel);
  }
  const Shape& shape() const { return shape_; }
  double best = std::numeric_limits<double>::infinity();

 private:
  Shape shape_;
  int64_t out_size_;
  Buffer in_, residual_, out_;
  std::vector<float> scale_, offset_;
  std::vector<int32_t> start_;
  Memory panel_;
  Epilogue epilogue_;
  ConvGeometry geometry_;
};

class LinearLayer {
 public:
  LinearLayer(int64_t m, int64_t k, int64_t n) : m_(m), k_(k), n_(n) {
    const WeightShape weight{n, k, 1, 1, 1, 8};
    std::vector<int8_t> codes(static_cast<size_t>(n * k));
    for (auto& code : codes) code = random_weight();
    std::vector<float> scale(static_cast<size_t>(n), 0.01f);
    const PanelHeader header = panel_header(weight);
    panel_ = allocate(header.total_bytes);
    pack_panel(header, codes.data(), scale.data(), nullptr, panel_.get());
    x_.resize(static_cast<size_t>(m * k));
    for (auto& v : x_) v = static_cast<float>(random_weight());
    y_.resize(static_cast<size_t>(m * n));
  }
  void run() { linear_dynamic(x_.data(), m_, k_, k_, panel_.get(), y_.data(), n_); }
  double macs() const { return static_cast<double>(m_ * k_) * static_cast<double>(n_); }
  int64_t m_, k_, n_;
  double best = std::numeric_limits<double>::infinity();

 private:
  Memory panel_;
  std::vector<float> x_, y_;
};

constexpr Shape kShapes[] = {
    {"resnet", "stem 7x7 s2 3-64 @224", 1, 224, 3, 64, 7, 2, 1, false},
    {"resnet", "3x3 64 @56", 1, 56, 64, 64, 3, 1, 1, false},
    {"resnet", "3x3 64 @56 +residual", 1, 56, 64, 64, 3, 1, 1, true},
    {"resnet", "3x3 s2 64-128 @56", 1, 56, 64, 128, 3, 2, 1, false},
    {"resnet", "1x1 s2 64-128 @56", 1, 56, 64, 128, 1, 2, 1, false},
    {"resnet", "3x3 128 @28", 1, 28, 128, 128, 3, 1, 1, false},
    {"resnet", "3x3 128 @28 +residual", 1, 28, 128, 128, 3, 1, 1, true},
    {"resnet", "3x3 s2 128-256 @28", 1, 28, 128, 256, 3, 2, 1, false},
    {"resnet", "3x3 256 @14", 1, 14, 256, 256, 3, 1, 1, false},
    {"resnet", "3x3 256 @14 +residual", 1, 14, 256, 256, 3, 1, 1, true},
    {"resnet", "3x3 s2 256-512 @14", 1, 14, 256, 512, 3, 2, 1, false},
    {"resnet", "3x3 512 @7", 1, 7, 512, 512, 3, 1, 1, false},
    {"resnet", "3x3 512 @7 batch 16", 16, 7, 512, 512, 3, 1, 1, false},
    {"resnet50", "1x1 64-256 @56 +residual", 1, 56, 64, 256, 1, 1, 1, true},
    {"resnet50", "1x1 256-64 @56", 1, 56, 256, 64, 1, 1, 1, false},
    {"resnet50", "1x1 128-512 @28 +residual", 1, 28, 128, 512, 1, 1, 1, true},
    {"resnet50", "1x1 512-128 @28", 1, 28, 512, 128, 1, 1, 1, false},
    {"resnet50", "1x1 256-1024 @14 +residual", 1, 14, 256, 1024, 1, 1, 1, true},
    {"resnet50", "1x1 1024-256 @14", 1, 14, 1024, 256, 1, 1, 1, false},
    {"resnet50", "1x1 512-2048 @7 +residual", 1, 7, 512, 2048, 1, 1, 1, true},
    {"resnet50", "1x1 2048-512 @7", 1, 7, 2048, 512, 1, 1, 1, false},
    {"mobilenet", "1x1 32-16 @112", 1, 112, 32, 16, 1, 1, 1, false},
    {"mobilenet", "1x1 16-96 @112", 1, 112, 16, 96, 1, 1, 1, false},
    {"mobilenet", "1x1 24-144 @56", 1, 56, 24, 144, 1, 1, 1, false},
    {"mobilenet", "1x1 144-24 @56", 1, 56, 144, 24, 1, 1, 1, true},
    {"mobilenet", "1x1 192-32 @28", 1, 28, 192, 32, 1, 1, 1, true},
    {"mobilenet", "1x1 96-576 @14", 1, 14, 96, 576, 1, 1, 1, false},
    {"mobilenet", "1x1 576-96 @14", 1, 14, 576, 96, 1, 1, 1, true},
    {"mobilenet", "1x1 160-960 @7", 1, 7, 160, 960, 1, 1, 1, false},
    {"mobilenet", "1x1 320-1280 @7", 1, 7, 320, 1280, 1, 1, 1, false},
    {"depthwise", "3x3 32 @112", 1, 112, 32, 32, 3, 1, 32, false},
    {"depthwise", "3x3 s2 96 @112", 1, 112, 96, 96, 3, 2, 96, false},
    {"depthwise", "3x3 144 @56", 1, 56, 144, 144, 3, 1, 144, false},
    {"depthwise", "3x3 192 @28", 1, 28, 192, 192, 3, 1, 192, false},
    {"depthwise", "3x3 576 @14", 1, 14, 576, 576, 3, 1, 576, false},
    {"depthwise", "3x3 960 @7", 1, 7, 960, 960, 3, 1, 960, false},
    {"depthwise", "5x5 240 @14", 1, 14, 240, 240, 5, 1, 240, false},
    {"depthwise", "7x7 96 @56", 1, 56, 96, 96, 7, 1, 96, false},
    {"grouped", "3x3 128 @56 groups 32", 1, 56, 128, 128, 3, 1, 32, false},
    {"grouped", "3x3 512 @14 groups 32", 1, 14, 512, 512, 3, 1, 32, false},
};

#if defined(__x86_64__)
#define DOTS8(reg, base)                                                                         \
  "vpdpbusd %%" reg "30, %%" reg "31, %%" reg base "0\n\tvpdpbusd %%" reg "30, %%" reg           \
  "31, %%" reg base "1\n\tvpdpbusd %%" reg "30, %%" reg "31, %%" reg base "2\n\tvpdpbusd %%" reg \
  "30, %%" reg "31, %%" reg base "3\n\tvpdpbusd %%" reg "30, %%" reg "31, %%" reg base           \
  "4\n\tvpdpbusd %%" reg "30, %%" reg "31, %%" reg base "5\n\tvpdpbusd %%" reg "30, %%" reg      \
  "31, %%" reg base "6\n\tvpdpbusd %%" reg "30, %%" reg "31, %%" reg base "7\n\t"

__attribute__((target("avx512f,avx512vl,avx512vnni"))) void zmm_dots(int64_t rounds) {
  for (int64_t i = 0; i < rounds; ++i) {
    __asm__ volatile(DOTS8("zmm", "") DOTS8("zmm", "1")
                     :
                     :
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm10",
                       "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17");
  }
}
__attribute__((target("avx512f,avx512vl,avx512vnni"))) void ymm_dots(int64_t rounds) {
  for (int64_t i = 0; i < rounds; ++i) {
    __asm__ volatile(DOTS8("ymm", "") DOTS8("ymm", "1")
                     :
                     :
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm10",
                       "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17");
  }
}
/// vpmaddubsw, vpmaddwd and vpaddd on eight chains: 32 products for the three.
__attribute__((target("avx2"))) void maddubs_pairs(int64_t rounds) {
  for (int64_t i = 0; i < rounds; ++i) {
    __asm__ volatile(
        "vpmaddubsw %%ymm14, %%ymm15, %%ymm8\n\tvpmaddwd %%ymm13, %%ymm8, %%ymm8\n\t"
        "vpaddd %%ymm8, %%ymm0, %%ymm0\n\t"
        "vpmaddubsw %%ymm14, %%ymm15, %%ymm9\n\tvpmaddwd %%ymm13, %%ymm9, %%ymm9\n\t"
        "vpaddd %%ymm9, %%ymm1, %%ymm1\n\t"
        "vpmaddubsw %%ymm14, %%ymm15, %%ymm10\n\tvpmaddwd %%ymm13, %%ymm10, %%ymm10\n\t"
        "vpaddd %%ymm10, %%ymm2, %%ymm2\n\t"
        "vpmaddubsw %%ymm14, %%ymm15, %%ymm11\n\tvpmaddwd %%ymm13, %%ymm11, %%ymm11\n\t"
        "vpaddd %%ymm11, %%ymm3, %%ymm3\n\t"
        "vpmaddubsw %%ymm14, %%ymm15, %%ymm8\n\tvpmaddwd %%ymm13, %%ymm8, %%ymm8\n\t"
        "vpaddd %%ymm8, %%ymm4, %%ymm4\n\t"
        "vpmaddubsw %%ymm14, %%ymm15, %%ymm9\n\tvpmaddwd %%ymm13, %%ymm9, %%ymm9\n\t"
        "vpaddd %%ymm9, %%ymm5, %%ymm5\n\t"
        "vpmaddubsw %%ymm14, %%ymm15, %%ymm10\n\tvpmaddwd %%ymm13, %%ymm10, %%ymm10\n\t"
        "vpaddd %%ymm10, %%ymm6, %%ymm6\n\t"
        "vpmaddubsw %%ymm14, %%ymm15, %%ymm11\n\tvpmaddwd %%ymm13, %%ymm11, %%ymm11\n\t"
        "vpaddd %%ymm11, %%ymm7, %%ymm7\n\t"
        :
        :
        : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
          "xmm11");
  }
}

/// tdpbusd on four chains of whole tiles: 16384 products each.
void tile_products(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  alignas(64) uint8_t operands[2][1024];
  for (int t = 0; t < 8; ++t) config.bytes[t] = 64, config.rows[t] = 16;
  for (uint8_t& code : operands[0]) code = random_activation();
  for (uint8_t& code : operands[1]) code = static_cast<uint8_t>(random_weight());
  __asm__ volatile(
      "ldtilecfg %0\n\t"
      "tileloadd (%1,%3,1), %%tmm4\n\ttileloadd (%2,%3,1), %%tmm6"
      :
      : "m"(config), "r"(operands[0]), "r"(operands[1]), "r"(int64_t{64}), "m"(operands));
  for (int64_t i = 0; i < rounds; ++i) {
    __asm__ volatile(
        "tdpbusd %tmm6, %tmm4, %tmm0\n\ttdpbusd %tmm6, %tmm4, %tmm1\n\t"
        "tdpbusd %tmm6, %tmm4, %tmm2\n\ttdpbusd %tmm6, %tmm4, %tmm3");
  }
  __asm__ volatile("tilerelease");
}

double peak_of(void (*loop)(int64_t), double macs_a_round) {
  constexpr int64_t kRounds = 20000;
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 10; ++i) {
    const double begin = seconds();
    loop(kRounds);
    best = std::min(best, seconds() - begin);
  }
  return macs_a_round * static_cast<double>(kRounds) / best * 1e-9;
}

/// GMAC/s of the ISA's dot product alone, or 0 where that is not known here.
double peak(const std::string& isa) {
  __builtin_cpu_init();
  const bool evex = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
  if (isa == "amx_int8") return peak_of(tile_products, 4 * 16384.0);
  if (isa == "avx512_vnni" && evex) return peak_of(zmm_dots, 16 * 64.0);
  if (isa == "avx_vnni" && evex) return peak_of(ymm_dots, 16 * 32.0);
  if (isa == "avx2") return peak_of(maddubs_pairs, 8 * 32.0);
  return 0.0;
}
#else
double peak(const std::string&) { return 0.0; }
#endif

template <class Layer>
void time_once(Layer& layer) {
  layer.run();
  const int64_t repeats = std::max<int64_t>(1, static_cast<int64_t>(2e7 / layer.macs()));
  const double begin = seconds();
  for (int64_t i = 0; i < repeats; ++i) layer.run();
  layer.best = std::min(layer.best, (seconds() - begin) / static_cast<double>(repeats));
}

void print(const char* net, const std::string& name, double macs, double best, double peak) {
  const double rate = macs / best * 1e-9;
  std::printf("%-10s %-28s %8.1f %9.1f %8.1f", net, name.c_str(), macs * 1e-6, best * 1e6, rate);
  if (peak > 0) std::printf(" %5.0f %%", 100 * rate / peak);
  std::printf("\n");
}

void bench(const std::string& isa, int rounds, const char* only) {
  set_isa(isa.c_str());
  std::vector<std::unique_ptr<ConvLayer>> convs;
  std::vector<std::unique_ptr<LinearLayer>> linears;
  for (const Shape& s : kShapes) {
    if (only == nullptr || std::strstr(s.net, only) != nullptr ||
        std::strstr(s.name, only) != nullptr) {
      convs.push_back(std::make_unique<ConvLayer>(s));
    }
  }
  if (only == nullptr || std::strcmp(only, "linear") == 0) {
    constexpr int64_t kSizes[][3] = {{1, 768, 768},    {1, 4096, 4096},  {4, 4096, 4096},
                                     {16, 4096, 4096}, {128, 768, 768},  {128, 768, 3072},
                                     {128, 3072, 768}, {128, 4096, 4096}};
    for (const auto& [m, k, n] : kSizes) {
      linears.push_back(std::make_unique<LinearLayer>(m, k, n));
    }
  }
  double top = 0.0;
  for (int r = 0; r < rounds; ++r) {
    top = std::max(top, peak(isa));
    for (auto& layer : convs) time_once(*layer);
    for (auto& layer : linears) time_once(*layer);
  }
  std::printf("\n%s, dot products in registers: %.1f GMAC/s\n", isa.c_str(), top);
  std::printf("%-10s %-28s %8s %9s %8s %7s\n", "net", "layer", "MMAC", "us", "GMAC/s", "of peak");
  for (auto& l : convs) print(l->shape().net, l->shape().name, l->macs(), l->best, top);
  for (auto& l : linears) {
    const std::string name = "m " + std::to_string(l->m_) + " k " + std::to_string(l->k_) + " n " +
                             std::to_string(l->n_);
    print("linear", name, l->macs(), l->best, top);
  }
  std::fflush(stdout);
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) {
  const char* threads = std::getenv("OCTAVO_BENCH_THREADS");
  omp_set_num_threads(threads != nullptr ? std::atoi(threads) : 1);
  const char* rounds = std::getenv("OCTAVO_BENCH_ROUNDS");
  const char* only = std::getenv("OCTAVO_BENCH_ONLY");
  std::vector<std::string> names(argv + 1, argv + argc);
  if (names.empty()) {
    for (int i = 0; i < octavo::isa_count(); ++i) {
      if (octavo::isa_available(i)) names.push_back(octavo::isa_name(i));
    }
  }
  for (const std::string& name : names) {
    if (octavo::set_isa(name.c_str()) != octavo::SetIsa::kOk) {
      std::fprintf(stderr, "kernel_bench: expected an ISA of this machine, got %s\n", name.c_str());
      return 1;
    }
    octavo::bench(name, rounds != nullptr ? std::atoi(rounds) : name == "scalar" ? 1 : 15, only);
  }
  return 0;
}

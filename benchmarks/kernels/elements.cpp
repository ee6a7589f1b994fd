// Times the kernels that are not products at the sizes of real networks, on one thread, beside what
// memcpy takes for the same traffic: best of many.
//
//   element_bench [isa ...]     default: the best ISA of this machine
#include <omp.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "dispatch.h"
#include "kernels.h"

namespace octavo {
namespace {

double best_microseconds(const std::function<void()>& f) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  const auto end = Clock::now() + std::chrono::milliseconds(60);
  int runs = 0;
  while (runs < 5 || Clock::now() < end) {
    const auto start = Clock::now();
    f();
    const std::chrono::duration<double, std::micro> took = Clock::now() - start;
    if (took.count() < best) best = took.count();
    ++runs;
  }
  return best;
}

struct Codes {
  Codes(int64_t n, int64_t h, int64_t w, int64_t c, int64_t halo = 0)
      : bytes(2 * kSlack + n * (h + 2 * halo) * (w + halo) * c + 2 * halo * c) {
    for (size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
    view.n = n, view.h = h, view.w = w, view.c = c, view.halo = halo;
    view.pixel_pitch = c, view.row_pitch = (w + halo) * c,
    view.image_pitch = (h + 2 * halo) * view.row_pitch;
    view.data = bytes.data() + kSlack + halo * view.row_pitch + halo * c;
  }
  std::vector<uint8_t> bytes;
  Image view;
};

struct Reals {
  Reals(int64_t n, int64_t h, int64_t w, int64_t c, bool channels_last) : values(n * h * w * c) {
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(static_cast<int32_t>(i * 2654435761u)) * 0x1p-30f;
    view = channels_last ? FloatImage{values.data(), n, h, w, c, h * w * c, w * c, c, 1}
                         : FloatImage{values.data(), n, h, w, c, h * w * c, w, 1, h * w};
  }
  std::vector<float> values;
  FloatImage view;
};

void report(const char* name, int64_t bytes_in, int64_t bytes_out, const std::function<void()>& f) {
  const double took = best_microseconds(f);
  std::vector<uint8_t> from(bytes_in + bytes_out), to(bytes_in + bytes_out);
  // memcpy moves its bytes twice, so half of them are the same traffic.
  const int64_t half = (bytes_in + bytes_out) / 2;
  const double copied = best_microseconds([&] {
    std::memcpy(to.data(), from.data(), half);
    __asm__ volatile("" : : "r"(to.data()) : "memory");
  });
  std::printf("%-52s %9.2f us  %6.1f GB/s  memcpy %8.2f us\n", name, took,
              static_cast<double>(bytes_in + bytes_out) / took / 1e3, copied);
}

void bench() {
  const QuantParams p{0.02f, 114, 255};
  {
    Reals x(1, 224, 224, 3, false), last(1, 224, 224, 3, true);
    Codes q(1, 224, 224, 3, 3);
    const int64_t count = 224 * 224 * 3;
    report("quantize_image 3x224x224, contiguous", 4 * count, count,
           [&] { quantize_image(x.view, p, q.view); });
    report("quantize_image 3x224x224, channels_last", 4 * count, count,
           [&] { quantize_image(last.view, p, q.view); });
    report("fill_halo 3x224x224, 3", 0, 2 * 3 * 3 * 224 * 4, [&] { fill_halo(q.view, 114); });
    QuantParams dynamic;
    report("dynamic_params 3x224x224", 4 * count, 0,
           [&] { dynamic_params(x.view, 255, &dynamic); });
  }
  for (const int64_t side : {56, 14, 7}) {
    const int64_t c = side == 56 ? 64 : side == 14 ? 256 : 512, count = side * side * c;
    Reals x(1, side, side, c, false);
    Codes q(1, side, side, c, 0), halo(1, side, side, c, 1);
    char name[80];
    std::snprintf(name, sizeof name, "quantize_image %dx%dx%d, contiguous", int(c), int(side),
                  int(side));
    report(name, 4 * count, count, [&] { quantize_image(x.view, p, halo.view); });
    std::snprintf(name, sizeof name, "dequantize_image %dx%dx%d to contiguous", int(c), int(side),
                  int(side));
    report(name, count, 4 * count, [&] { dequantize_image(q.view, p, x.view); });
  }
  {
    const int64_t count = 1 << 20;
    Reals x(1, 1, 1, count, false);
    Codes q(1, 1, 1, count);
    std::vector<int8_t> s(count);
    report("quantize 1 Mi", 4 * count, count,
           [&] { quantize(x.values.data(), count, p, q.view.data); });
    report("dequantize 1 Mi", count, 4 * count,
           [&] { dequantize(q.view.data, count, p, x.values.data()); });
    report("minmax 1 Mi", 4 * count, 0, [&] { minmax(x.values.data(), count); });
    std::vector<int64_t> bins(2048);
    report("histogram 1 Mi, 2048 bins", 4 * count, 0,
           [&] { histogram(x.values.data(), count, -9, -1024, 2048, bins.data()); });
    std::vector<float> scale(1024, 0.01f);
    std::vector<MinMax> ranges(1024);
    report("quantize_per_channel 1024 x 1024, rows", 4 * count, count, [&] {
      quantize_per_channel(x.values.data(), 1, 1024, 1024, scale.data(), -127, 127, s.data());
    });
    report("minmax_per_channel 1024 x 1024, columns", 4 * count, 0,
           [&] { minmax_per_channel(x.values.data(), 1024, 1024, 1, ranges.data()); });
  }
  {
    Codes a(1, 56, 56, 256), b(1, 56, 56, 256), out(1, 56, 56, 256, 1), s(1, 1, 1, 256);
    const int64_t count = 56 * 56 * 256;
    std::vector<float> m(256, 0.7f), offset(256, 20.0f);
    std::vector<uint8_t> table(256);
    for (int i = 0; i < 256; ++i) table[i] = static_cast<uint8_t>(i / 2);
    report("add 256x56x56", 2 * count, count,
           [&] { add(a.view, b.view, 0.6f, 0.8f, -13.0f, 0, 255, out.view); });
    report("multiply 256x56x56 by 256x1x1", count, count,
           [&] { multiply(a.view, s.view, 0, 3, 0.01f, 0, 0, 255, out.view); });
    report("affine 256x56x56", count, count,
           [&] { affine(a.view, m.data(), offset.data(), 0, 255, out.view); });
    report("apply_table 256x56x56", count, count,
           [&] { apply_table(a.view, table.data(), false, out.view); });
    report("copy 256x56x56 into a halo", count, count, [&] { copy(a.view, out.view); });
  }
  for (const int64_t c : {16, 24, 72}) {
    Codes a(1, 56, 56, c), out(1, 56, 56, c, 1), s(1, 1, 1, c);
    const int64_t count = 56 * 56 * c;
    char name[80];
    std::snprintf(name, sizeof name, "multiply %dx56x56 by %dx1x1", int(c), int(c));
    report(name, count, count, [&] { multiply(a.view, s.view, 0, 3, 0.01f, 0, 0, 255, out.view); });
    std::snprintf(name, sizeof name, "adaptive_average_pool %dx56x56 to 1x1", int(c));
    report(name, count, 0, [&] { adaptive_average_pool(a.view, 3, 0.7f, 0, 0, 255, s.view); });
  }
  {
    Codes x(1, 112, 112, 64), out(1, 56, 56, 64, 1);
    const int64_t count = 112 * 112 * 64;
    report("max_pool 3x3 stride 2, 64x112x112", count, count / 4, [&] {
      max_pool(x.view, {3, 3, 2, 2, 1, 1, 1, 1}, out.view);
    });
    report("average_pool 3x3 stride 2, 64x112x112", count, count / 4, [&] {
      average_pool(x.view, {{3, 3, 2, 2, 1, 1, 1, 1}, 1, 1, true, 0}, 3, 0.7f, 0, 0, 255, out.view);
    });
  }
  for (const int64_t c : {512, 1280, 2048}) {
    Codes x(1, 7, 7, c), out(1, 1, 1, c), rows(1, 1, 1, c * 49);
    char name[80];
    std::snprintf(name, sizeof name, "adaptive_average_pool %dx7x7 to 1x1", int(c));
    report(name, 49 * c, c, [&] { adaptive_average_pool(x.view, 3, 0.7f, 0, 0, 255, out.view); });
    std::snprintf(name, sizeof name, "flatten %dx7x7", int(c));
    report(name, 49 * c, 49 * c, [&] { flatten(x.view, rows.view); });
  }
  {
    Codes x(1, 28, 28, 116), out(1, 28, 28, 116), up(1, 56, 56, 116);
    const int64_t count = 28 * 28 * 116;
    std::vector<int32_t> index(116);
    for (int i = 0; i < 116; ++i) index[i] = i % 2 * 58 + i / 2;
    report("gather_channels (shuffle of 2 groups) 116x28x28", count, count,
           [&] { gather_channels(x.view, index.data(), 0, out.view); });
    std::vector<int64_t> half(56);
    for (int i = 0; i < 56; ++i) half[i] = i / 2;
    report("upsample_nearest 116x28x28 to 56x56", count, 4 * count,
           [&] { upsample_nearest(x.view, half.data(), half.data(), up.view); });
  }
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) {
  omp_set_num_threads(1);
  std::vector<std::string> names(argv + 1, argv + argc);
  if (names.empty()) names.push_back(octavo::active_isa());
  for (const std::string& name : names) {
    if (octavo::set_isa(name.c_str()) != octavo::SetIsa::kOk) {
      std::fprintf(stderr, "element_bench: expected an ISA of this machine, got %s\n",
                   name.c_str());
      return 1;
    }
    std::printf("\n%s\n", name.c_str());
    octavo::bench();
  }
  return 0;
}

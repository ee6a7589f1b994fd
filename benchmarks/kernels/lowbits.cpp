// Times products with packed low-bit weights, one thread. First part, matrix times vector, with
// weights in L2, in L3 and in memory: beside each the time in which a loop of plain loads reads the
// same bytes, measured in the same run: the limit. Second part, time a row over 1 to 128 rows.
//
//   lowbit_bench [isa ...]     default: the best ISA of this machine
//
// Rounds go over all products again and again and the least time of each counts.
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
#include "huge_pages.h"
#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace octavo {
namespace {

double seconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

uint64_t random_state = 88172645463325252ull;
uint32_t random_bits() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 16);
}

struct FreeMemory {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, FreeMemory>;

// ---- the limit: nothing but loads

/// Lines asked for so many bytes ahead of where the loop reads; 0: the processor's own guess.
using Read = void (*)(const char* p, int64_t bytes, int64_t ahead);

#if defined(__x86_64__)
__attribute__((target("avx512f"))) void read_zmm(const char* p, int64_t bytes, int64_t ahead) {
  for (const char* end = p + bytes; p < end; p += 256) {
    if (ahead > 0) {
      for (int i = 0; i < 4; ++i) __builtin_prefetch(p + ahead + 64 * i);
    }
    __asm__ volatile(
        "vmovdqu64 (%0), %%zmm0\n\tvmovdqu64 64(%0), %%zmm1\n\tvmovdqu64 128(%0), %%zmm2\n\t"
        "vmovdqu64 192(%0), %%zmm3"
        :
        : "r"(p)
        : "xmm0", "xmm1", "xmm2", "xmm3");
  }
}
__attribute__((target("avx2"))) void read_ymm(const char* p, int64_t bytes, int64_t ahead) {
  for (const char* end = p + bytes; p < end; p += 128) {
    if (ahead > 0) {
      for (int i = 0; i < 2; ++i) __builtin_prefetch(p + ahead + 64 * i);
    }
    __asm__ volatile(
        "vmovdqu (%0), %%ymm0\n\tvmovdqu 32(%0), %%ymm1\n\tvmovdqu 64(%0), %%ymm2\n\t"
        "vmovdqu 96(%0), %%ymm3"
        :
        : "r"(p)
        : "xmm0", "xmm1", "xmm2", "xmm3");
  }
}
Read widest_read() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") ? read_zmm : read_ymm;
}
#else
void read_words(const char* p, int64_t bytes, int64_t ahead) {
  uint64_t sums[4] = {};
  for (const char* end = p + bytes; p < end; p += 64) {
    if (ahead > 0) __builtin_prefetch(p + ahead);
    uint64_t words[8];
    std::memcpy(words, p, 64);
    for (int i = 0; i < 8; ++i) sums[i % 4] ^= words[i];
  }
  __asm__ volatile("" : : "r"(sums[0] ^ sums[1] ^ sums[2] ^ sums[3]));
}
Read widest_read() { return read_words; }
#endif

/// Least seconds of `call` over some repeats after one that warms up.
template <class Call>
void keep_best(double macs, double* best, Call&& call) {
  call();
  const int64_t repeats = std::max<int64_t>(1, static_cast<int64_t>(1e7 / macs));
  for (int turn = 0; turn < 3; ++turn) {
    const double begin = seconds();
    for (int64_t i = 0; i < repeats; ++i) call();
    *best = std::min(*best, (seconds() - begin) / static_cast<double>(repeats));
  }
}

constexpr double kNever = std::numeric_limits<double>::infinity();

/// One product: a weight of random codes in groups of 128, and rows to multiply it with.
class Product {
 public:
  Product(int32_t bits, LowbitKind kind, int64_t m, int64_t k, int64_t n)
      : bits_(bits), kind_(kind), m_(m), k_(k), n_(n) {
    constexpr int64_t kGroup = 128;
    std::vector<uint8_t> codes(static_cast<size_t>(n * k));
    for (auto& code : codes) code = static_cast<uint8_t>(random_bits() & ((1u << bits) - 1));
    const std::vector<float> scale(static_cast<size_t>(n * lowbit_groups(k, kGroup)), 0.0078125f);
    std::vector<int8_t> levels(static_cast<size_t>((n + 63) / 64) << bits);
    for (auto& level : levels) level = static_cast<int8_t>(random_bits());
    LowbitWeight w{};
    w.order = LowbitOrder::kColumns;
    w.kind = kind;
    w.bits = bits;
    w.out_features = n;
    w.in_features = k;
    w.group_size = kGroup;
    w.codes = codes.data();
    w.scale = scale.data();
    w.levels = kind == LowbitKind::kLevels ? levels.data() : nullptr;
    bytes_ = lowbit_bytes(w);
    packed_ = Memory(std::aligned_alloc(4096, static_cast<size_t>((bytes_ + 8191) / 4096 * 4096)));
    write_to_huge_pages(packed_.get(), bytes_, [&] { pack_lowbit(w, packed_.get()); });
    x_.resize(static_cast<size_t>(m * k));
    for (auto& v : x_) v = static_cast<float>(static_cast<int32_t>(random_bits())) * 0x1p-30f;
    y_.resize(static_cast<size_t>(m * n));
  }
  void run() { linear_lowbit(x_.data(), m_, k_, packed_.get(), y_.data(), n_); }
  void time() {
    keep_best(macs(), &best, [this] { run(); });
  }
  void time_reads(Read read) {
    for (const int64_t ahead : {0, 1024, 2048, 4096}) {
      keep_best(macs(), &limit, [this, read, ahead] {
        read(static_cast<const char*>(packed_.get()), bytes_ & -256, ahead);
      });
    }
  }
  double macs() const { return static_cast<double>(m_ * k_) * static_cast<double>(n_); }
  double bytes() const { return static_cast<double>(bytes_); }
  std::string name() const {
    return std::to_string(bits_) + (kind_ == LowbitKind::kLevels ? " levels" : "");
  }
  int64_t rows() const { return m_; }
  double best = kNever, limit = kNever;

 private:
  int32_t bits_;
  LowbitKind kind_;
  int64_t m_, k_, n_, bytes_;
  Memory packed_;
  std::vector<float> x_, y_;
};

using Products = std::vector<std::unique_ptr<Product>>;

/// What grows as codes become narrower: nothing, or n, so that all weights take as many bytes.
enum class Same { kShape, kBytes };

Products products(int64_t m, int64_t k, int64_t n, Same same = Same::kShape) {
  Products all;
  all.push_back(std::make_unique<Product>(8, LowbitKind::kSymmetric, m, k, n));
  for (const int32_t bits : {4, 3, 2}) {
    const int64_t columns = same == Same::kBytes ? n * 8 / bits / 64 * 64 : n;
    all.push_back(std::make_unique<Product>(bits, LowbitKind::kSymmetric, m, k, columns));
    all.push_back(std::make_unique<Product>(bits, LowbitKind::kLevels, m, k, columns));
  }
  return all;
}

void vector_table(const char* where, int64_t k, int64_t n, Same same, int rounds) {
  Products all = products(1, k, n, same);
  const Read read = widest_read();
  for (int r = 0; r < rounds; ++r) {
    for (auto& p : all) {
      p->time();
      p->time_reads(read);
    }
  }
  std::printf("\nweights in %s: k %ld n %ld%s\n", where, static_cast<long>(k), static_cast<long>(n),
              same == Same::kBytes ? ", of fewer bits as many bytes" : "");
  std::printf("%-9s %9s %8s %8s %9s %8s %7s %10s\n", "bits", "us", "GMAC/s", "GB/s", "limit us",
              "GB/s", "ratio", "to 8 bits");
  for (auto& p : all) {
    std::printf("%-9s %9.1f %8.1f %8.1f %9.1f %8.1f %7.2f %10.2f\n", p->name().c_str(),
                p->best * 1e6, p->macs() / p->best * 1e-9, p->bytes() / p->best * 1e-9,
                p->limit * 1e6, p->bytes() / p->limit * 1e-9, p->best / p->limit,
                p->best / p->macs() / (all[0]->best / all[0]->macs()));
  }
  std::fflush(stdout);
}

void row_table(int64_t k, int64_t n, int rounds) {
  constexpr int64_t kRows[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 12, 13,
                               16, 17, 20, 24, 25, 32, 33, 48, 64, 65, 96, 128};
  std::vector<Products> all;
  for (const int64_t m : kRows) all.push_back(products(m, k, n));
  for (int r = 0; r < rounds; ++r) {
    for (auto& products : all) {
      for (auto& p : products) p->time();
    }
  }
  std::printf("\nus a row: k %ld n %ld\n%6s", static_cast<long>(k), static_cast<long>(n), "rows");
  for (auto& p : all[0]) std::printf(" %9s", p->name().c_str());
  std::printf("   and the largest factor to fewer rows in all\n");
  std::vector<double> most(all[0].size(), 0.0);
  for (auto& products : all) {
    std::printf("%6ld", static_cast<long>(products[0]->rows()));
    double steepest = 0.0;
    for (size_t i = 0; i < products.size(); ++i) {
      const double row = products[i]->best * 1e6 / static_cast<double>(products[i]->rows());
      std::printf(" %9.2f", row);
      if (most[i] > 0) steepest = std::max(steepest, row / most[i]);
      most[i] = most[i] > 0 ? std::min(most[i], row) : row;
    }
    std::printf("   %6.2f\n", steepest);
  }
  std::fflush(stdout);
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) {
  omp_set_num_threads(1);
  const char* only = std::getenv("OCTAVO_BENCH_ONLY");
  const char* given = std::getenv("OCTAVO_BENCH_ROUNDS");
  const int rounds = given != nullptr ? std::atoi(given) : 7;
  std::vector<std::string> names(argv + 1, argv + argc);
  if (names.empty()) names.push_back(octavo::active_isa());
  for (const std::string& name : names) {
    if (octavo::set_isa(name.c_str()) != octavo::SetIsa::kOk) {
      std::fprintf(stderr, "lowbit_bench: expected an ISA of this machine, got %s\n", name.c_str());
      return 1;
    }
    std::printf("%s\n", name.c_str());
    const auto wanted = [&](const char* part) {
      return only == nullptr || std::strcmp(only, part) == 0;
    };
    if (wanted("L2")) octavo::vector_table("L2", 768, 768, octavo::Same::kShape, 4 * rounds);
    if (wanted("L3")) octavo::vector_table("L3", 4096, 4096, octavo::Same::kShape, rounds);
    if (wanted("memory")) octavo::vector_table("memory", 8192, 24576, octavo::Same::kBytes, 3);
    if (wanted("rows")) octavo::row_table(4096, 1024, rounds);
  }
  return 0;
}

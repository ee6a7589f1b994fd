// Chooses the instruction set: rows with their parents and probes, the table of each available row,
// the active one. Called by ops/, module.cpp and every driver (active_table); calls the fill
// functions of isa/.
#include "dispatch.h"

#include <array>
#include <atomic>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernel_table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#endif

namespace octavo {

#if defined(OCTAVO_HAS_AMX_EMULATED)
namespace amx_emulated {
void fill(KernelTable& table);
}
#endif

namespace {

/// One thing that a row needs, under the name that messages use.
struct Need {
  const char* name;
  bool (*present)();
};

#if defined(__x86_64__)

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) r = Registers{};
  return r;
}

/// Register state that the operating system saves, XCR0; 0 without OSXSAVE.
uint64_t saved_state() {
  if ((cpuid(1, 0).c >> 27 & 1) == 0) return 0;
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

bool os_saves(uint64_t mask) { return (saved_state() & mask) == mask; }
bool has_leaf7_b(int bit) { return cpuid(7, 0).b >> bit & 1; }
bool has_leaf7_c(int bit) { return cpuid(7, 0).c >> bit & 1; }
bool has_leaf7_d(int bit) { return cpuid(7, 0).d >> bit & 1; }

/// Linux grants AMX tile registers only on request, once for the process.
bool amx_permitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

const std::vector<Need> kAvx2Needs = {
    {"os_avx", [] { return os_saves(0x6); }},
    {"avx2", [] { return has_leaf7_b(5); }},
    {"fma", [] { return (cpuid(1, 0).c >> 12 & 1) != 0; }},
    {"f16c", [] { return (cpuid(1, 0).c >> 29 & 1) != 0; }},
};
const std::vector<Need> kAvxVnniNeeds = {
    {"avx_vnni", [] { return (cpuid(7, 1).a >> 4 & 1) != 0; }},
};
const std::vector<Need> kAvx512VnniNeeds = {
    {"os_avx512", [] { return os_saves(0xe6); }}, {"avx512f", [] { return has_leaf7_b(16); }},
    {"avx512dq", [] { return has_leaf7_b(17); }}, {"avx512bw", [] { return has_leaf7_b(30); }},
    {"avx512vl", [] { return has_leaf7_b(31); }}, {"avx512_vnni", [] { return has_leaf7_c(11); }},
};
const std::vector<Need> kAmxNeeds = {
    {"amx_tile", [] { return has_leaf7_d(24); }},
    {"amx_int8", [] { return has_leaf7_d(25); }},
    {"os_amx", [] { return os_saves(0x60000) && amx_permitted(); }},
};

#elif defined(__aarch64__) && defined(__linux__)

const std::vector<Need> kNeonDotprodNeeds = {
    {"asimddp", [] { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }},
};

#endif

const std::vector<Need> kNoNeeds;

/// One ISA: what it inherits, what it needs beyond its parent, its kernels.
struct Row {
  const char* name;
  const char* parent;
  const std::vector<Need>& needs;
  void (*fill)(KernelTable&);
};

// Best first. A row is here when the build compiled its folder (CMakeLists.txt).
const Row kRows[] = {
#if defined(OCTAVO_HAS_AMX_INT8)
    {"amx_int8", "avx512_vnni", kAmxNeeds, amx_int8::fill},
#endif
#if defined(OCTAVO_HAS_AVX512_VNNI)
    {"avx512_vnni", "avx2", kAvx512VnniNeeds, avx512_vnni::fill},
#endif
#if defined(OCTAVO_HAS_AVX_VNNI)
    {"avx_vnni", "avx2", kAvxVnniNeeds, avx_vnni::fill},
#endif
#if defined(OCTAVO_HAS_AVX2)
    {"avx2", "scalar", kAvx2Needs, avx2::fill},
#endif
#if defined(OCTAVO_HAS_NEON_DOTPROD)
    {"neon_dotprod", "scalar", kNeonDotprodNeeds, neon_dotprod::fill},
#endif
    {"scalar", nullptr, kNoNeeds, scalar::fill},
#if defined(OCTAVO_HAS_AMX_EMULATED)
    {"amx_emulated", "avx512_vnni", kNoNeeds, amx_emulated::fill},  // tests only; never the best
#endif
};
constexpr int kRowCount = static_cast<int>(std::size(kRows));

int find_row(const char* name) {
  for (int i = 0; i < kRowCount; ++i) {
    if (std::strcmp(kRows[i].name, name) == 0) return i;
  }
  return -1;
}

void fill_with_parents(int i, KernelTable& table) {
  if (kRows[i].parent != nullptr) fill_with_parents(find_row(kRows[i].parent), table);
  kRows[i].fill(table);
}

std::string missing_of(int i) {
  std::string text = kRows[i].parent != nullptr ? missing_of(find_row(kRows[i].parent)) : "";
  for (const Need& need : kRows[i].needs) {
    // Later probes may only run where the earlier ones hold (the AMX permission call).
    if (!text.empty() || !need.present())
      text += (text.empty() ? "" : ", ") + std::string(need.name);
  }
  return text;
}

struct State {
  std::array<std::string, kRowCount> missing;
  std::array<KernelTable, kRowCount> tables;
  std::atomic<int> active{-1};  // -1: OCTAVO_ISA has not been read yet

  State() {
    for (int i = 0; i < kRowCount; ++i) {
      missing[i] = missing_of(i);
      tables[i] = KernelTable{};
      if (missing[i].empty()) fill_with_parents(i, tables[i]);
      if (tables[i].gemm.layout != PanelLayout::kAmx) tables[i].narrow = tables[i].gemm;
    }
  }
};

State& state() {
  static State s;
  return s;
}

int best_row() {
  for (int i = 0; i < kRowCount; ++i) {
    if (state().missing[i].empty()) return i;
  }
  return kRowCount - 1;
}

int active_row() {
  const int row = state().active.load(std::memory_order_acquire);
  if (row >= 0) return row;
  const SetIsa result = set_isa_from_environment();
  if (result != SetIsa::kOk) {
    std::fprintf(stderr,
                 "OCTAVO_ISA: expected an instruction set that this machine has, got '%s' (%s).\n",
                 std::getenv("OCTAVO_ISA"),
                 result == SetIsa::kUnknownName ? "no such name" : "not supported here");
    std::abort();
  }
  return state().active.load(std::memory_order_acquire);
}

}  // namespace

int isa_count() { return kRowCount; }
const char* isa_name(int i) { return kRows[i].name; }
bool isa_available(int i) { return state().missing[i].empty(); }
std::string isa_missing(int i) { return state().missing[i]; }

SetIsa set_isa(const char* name) {
  int row;
  if (name == nullptr || *name == '\0') {
    row = best_row();
  } else {
    row = find_row(name);
    if (row < 0) return SetIsa::kUnknownName;
    if (!isa_available(row)) return SetIsa::kNotSupportedHere;
  }
  state().active.store(row, std::memory_order_release);
  return SetIsa::kOk;
}

SetIsa set_isa_from_environment() {
  const char* value = std::getenv("OCTAVO_ISA");
  std::string word;
  for (const char* p = value; p != nullptr && *p != '\0'; ++p) {
    const auto c = static_cast<unsigned char>(*p);
    if (!std::isspace(c)) word += static_cast<char>(std::tolower(c));
  }
  return set_isa(word.c_str());
}

const char* active_isa() { return kRows[active_row()].name; }

const KernelTable& active_table() { return state().tables[active_row()]; }

const KernelTable* table_for(PanelLayout layout) {
  const auto has_tiles = [layout](const KernelTable& table) {
    return table.gemm.layout == layout || table.narrow.layout == layout;
  };
  if (const KernelTable& active = active_table(); has_tiles(active)) return &active;
  for (int i = 0; i < kRowCount; ++i) {
    if (isa_available(i) && has_tiles(state().tables[i])) return &state().tables[i];
  }
  return nullptr;
}

const KernelTable* find_table(const char* name) {
  const int row = find_row(name);
  return row >= 0 && isa_available(row) ? &state().tables[row] : nullptr;
}

}  // namespace octavo

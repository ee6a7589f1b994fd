// Which instruction set runs: rows best-first, a forced choice, the active table of micro-kernels.
#pragma once

#include <cstdint>

namespace octavo {

struct KernelTable;

/// Number of ISA rows compiled into this binary, and the name of row i (best first).
int isa_count();
const char* isa_name(int i);
/// Whether CPU and operating system support row i.
bool isa_available(int i);

/// Result of forcing an ISA by name.
enum class SetIsa { kOk, kUnknownName, kNotSupportedHere };
/// Forces the named ISA for the process; "" or nullptr restores the best available one.
SetIsa set_isa(const char* name);
/// Name of the active ISA.
const char* active_isa();

/// Table of the active ISA. Its functions are never null: a missing kernel is inherited from the parent row.
const KernelTable& active_table();

/// Table of a named ISA for tests, or nullptr where it is not available. amx_int8's emulation is listed
/// here as "amx_emulated" in test builds only.
const KernelTable* find_table(const char* name);

}  // namespace octavo

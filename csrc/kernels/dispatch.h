// Which instruction set runs: rows best-first, a forced choice, the active table of micro-kernels.
#pragma once

#include <cstdint>
#include <string>

#include "types.h"

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
/// What row i needs and CPU or operating system lack, comma-separated; "" where it is available.
std::string isa_missing(int i);
/// Name of the active ISA.
const char* active_isa();
/// Applies the OCTAVO_ISA environment variable (case and blanks do not count, empty is unset). The
/// first use of the active table does the same, and ends the process with a message where the
/// variable cannot be obeyed; a host that wants to raise an error instead calls this first.
SetIsa set_isa_from_environment();

/// Table of the active ISA. Its functions are never null: a missing kernel is inherited from the
/// parent row.
///
/// Another thread may choose another ISA at any time: a driver asks once a call, passes the table
/// on, and sizes its scratch by it.
const KernelTable& active_table();

/// Table for products with panels of a layout: the active ISA's if it has tiles for that layout,
/// else that of the best ISA of this machine that has; nullptr if none does.
const KernelTable* table_for(PanelLayout layout);

/// Table of a named ISA for tests, or nullptr where it is not available. In test builds amx_int8's
/// emulation is one more row, "amx_emulated", after all others.
const KernelTable* find_table(const char* name);

}  // namespace octavo

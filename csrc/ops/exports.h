// What octavo_ops offers besides Torch operators: plain C functions that module.cpp calls. There is
// one active table in a process because only octavo_ops holds the kernels.
#pragma once

#include <cstdint>

#define OCTAVO_EXPORT extern "C" __attribute__((visibility("default")))

OCTAVO_EXPORT int octavo_isa_count();
OCTAVO_EXPORT const char* octavo_isa_name(int i);
OCTAVO_EXPORT bool octavo_isa_available(int i);
/// What row i lacks here, comma-separated; valid until this thread's next call.
OCTAVO_EXPORT const char* octavo_isa_missing(int i);
OCTAVO_EXPORT const char* octavo_active_isa();
/// 0: done, 1: no such name, 2: not supported here. nullptr or "" restores the best ISA.
OCTAVO_EXPORT int octavo_set_isa(const char* name);
/// Obeys OCTAVO_ISA; the same results.
OCTAVO_EXPORT int octavo_set_isa_from_environment();
/// Whether the active ISA computes with a panel that begins with these 128 bytes.
OCTAVO_EXPORT bool octavo_panel_is_current(const void* header);
OCTAVO_EXPORT int64_t octavo_integer_macs();
OCTAVO_EXPORT void octavo_reset_integer_macs();
/// Threads that a kernel called from this thread would use.
OCTAVO_EXPORT int octavo_max_threads();
/// Shapes of a region's results. sizes: for each input its rank and its sizes, one after the other.
/// Returns the results in the same form, *count of them, valid until this thread's next call;
/// nullptr and *error where they do not fit.
OCTAVO_EXPORT const int64_t* octavo_region_shapes(const char* program, const int64_t* sizes,
                                                  int64_t inputs, const int64_t* panel_counts,
                                                  int64_t panels, int64_t* count,
                                                  const char** error);

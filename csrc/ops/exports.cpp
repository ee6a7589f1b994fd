// The C functions of exports.h: they pass on to kernels/dispatch.h, kernels.h and parallel.h.
#include "exports.h"

#include <string>

#include "dispatch.h"
#include "kernels.h"
#include "parallel.h"

int octavo_isa_count() { return octavo::isa_count(); }

const char* octavo_isa_name(int i) { return octavo::isa_name(i); }

bool octavo_isa_available(int i) { return octavo::isa_available(i); }

const char* octavo_isa_missing(int i) {
  thread_local std::string text;
  text = octavo::isa_missing(i);
  return text.c_str();
}

const char* octavo_active_isa() { return octavo::active_isa(); }

int octavo_set_isa(const char* name) { return static_cast<int>(octavo::set_isa(name)); }

int octavo_set_isa_from_environment() {
  return static_cast<int>(octavo::set_isa_from_environment());
}

int64_t octavo_integer_macs() { return octavo::integer_macs(); }

void octavo_reset_integer_macs() { octavo::reset_integer_macs(); }

int octavo_max_threads() { return octavo::max_threads(); }

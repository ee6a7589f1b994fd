// The C functions of exports.h: they pass on to kernels/dispatch.h, kernels.h and parallel.h.
#include "exports.h"

#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "dispatch.h"
#include "kernels.h"
#include "parallel.h"
#include "region/shapes.h"

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

bool octavo_panel_is_current(const void* header) {
  octavo::PanelHeader h;
  std::memcpy(&h, header, sizeof h);
  return octavo::panel_is_current(h);
}

int64_t octavo_integer_macs() { return octavo::integer_macs(); }

void octavo_reset_integer_macs() { octavo::reset_integer_macs(); }

int octavo_max_threads() { return octavo::max_threads(); }

const int64_t* octavo_region_shapes(const char* program, const int64_t* sizes, int64_t inputs,
                                    const int64_t* panel_counts, int64_t panels, int64_t* count,
                                    const char** error) {
  thread_local std::vector<int64_t> results;
  thread_local std::string message;
  try {
    std::vector<std::vector<int64_t>> shapes;
    for (int64_t i = 0; i < inputs; ++i) {
      shapes.emplace_back(sizes + 1, sizes + 1 + sizes[0]);
      sizes += 1 + sizes[0];
    }
    const auto outputs = octavo::region_output_shapes(
        program, shapes, std::vector<int64_t>(panel_counts, panel_counts + panels));
    results.assign(1, 0);  // never empty, so that its address is not null
    for (const std::vector<int64_t>& output : outputs) {
      results.push_back(static_cast<int64_t>(output.size()));
      results.insert(results.end(), output.begin(), output.end());
    }
    *count = static_cast<int64_t>(outputs.size());
    return results.data() + 1;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& failure) {
    message = failure.what();
    *error = message.c_str();
    return nullptr;
  }
}

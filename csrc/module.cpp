// The Python module octavo._C: instruction sets, counters, build information. No tensors and no
// arithmetic; all state lives in octavo_ops, which must be loaded first (it is: this module links
// to it).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "ops/exports.h"

namespace py = pybind11;

namespace {

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < octavo_isa_count(); ++i) names.emplace_back(octavo_isa_name(i));
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < octavo_isa_count(); ++i) {
    if (octavo_isa_available(i)) names.emplace_back(octavo_isa_name(i));
  }
  return names;
}

std::string missing_for(const std::string& name) {
  for (int i = 0; i < octavo_isa_count(); ++i) {
    if (name == octavo_isa_name(i)) return octavo_isa_missing(i);
  }
  throw py::key_error(name);
}

bool panel_is_current(const std::string& header) {
  if (header.size() != 128) throw py::value_error("panel_is_current: expected 128 bytes.");
  return octavo_panel_is_current(header.data());
}

std::vector<std::vector<int64_t>> region_shapes(const std::string& program,
                                                const std::vector<std::vector<int64_t>>& inputs,
                                                const std::vector<int64_t>& panel_counts) {
  std::vector<int64_t> sizes;
  for (const std::vector<int64_t>& input : inputs) {
    sizes.push_back(static_cast<int64_t>(input.size()));
    sizes.insert(sizes.end(), input.begin(), input.end());
  }
  int64_t count = 0;
  const char* error = "";
  const int64_t* results = octavo_region_shapes(
      program.c_str(), sizes.data(), static_cast<int64_t>(inputs.size()), panel_counts.data(),
      static_cast<int64_t>(panel_counts.size()), &count, &error);
  if (results == nullptr) throw py::value_error(error);
  std::vector<std::vector<int64_t>> shapes;
  for (int64_t i = 0; i < count; ++i) {
    shapes.emplace_back(results + 1, results + 1 + results[0]);
    results += 1 + results[0];
  }
  return shapes;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Instruction sets, counters and build information of octavo's kernels.";
  m.attr("version") = OCTAVO_VERSION;
  m.attr("compiler") = __VERSION__;
  m.def("compiled_isas", &compiled_isas, "Names that this build holds, best first.");
  m.def("isas", &available_isas, "Names that this machine supports, best first.");
  m.def(
      "isa", [] { return std::string(octavo_active_isa()); }, "Name of the active one.");
  m.def("missing_for", &missing_for, "What CPU or system lack for the named one; '' if nothing.");
  m.def(
      "set_isa", [](const std::string& name) { return octavo_set_isa(name.c_str()); },
      "Forces one, '' restores the best. 0: done, 1: no such name, 2: not supported here.");
  m.def(
      "set_isa_from_environment", [] { return octavo_set_isa_from_environment(); },
      "Obeys OCTAVO_ISA. The same results.");
  m.def(
      "integer_macs", [] { return octavo_integer_macs(); },
      "Multiply-adds done in integers since the last reset.");
  m.def("panel_is_current", &panel_is_current,
        "Whether the active instruction set computes with a panel of this header.");
  m.def("reset_integer_macs", [] { octavo_reset_integer_macs(); });
  m.def("region_shapes", &region_shapes,
        "Shapes of a region program's results from its inputs' shapes and its panels' element "
        "counts. "
        "ValueError where they do not fit.");
  m.def(
      "max_threads", [] { return octavo_max_threads(); },
      "Threads that a kernel called now would use.");
}

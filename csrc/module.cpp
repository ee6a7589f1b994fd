// The Python module octavo._C: instruction sets, counters, build information, comparisons of dicts.
// No tensors and no arithmetic; all state lives in octavo_ops, which must be loaded first (it is:
// this module links to it).
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

// Whether tables[i][keys[i]] is values[i], counted[i] has counts[i] entries and
// objects[i] is of the class classes[i], for all i. In C, because a captured module asks it of
// hundreds of entries before each call.
bool is_unchanged(const py::tuple& tables, const py::tuple& keys, const py::tuple& values,
                  const py::tuple& counted, const std::vector<Py_ssize_t>& counts,
                  const py::tuple& objects, const py::tuple& classes) {
  if (tables.size() != keys.size() || tables.size() != values.size() ||
      counted.size() != counts.size() || objects.size() != classes.size()) {
    throw py::value_error("is_unchanged: expected tuples of equal lengths.");
  }
  for (size_t i = 0; i < tables.size(); ++i) {
    PyObject* table = PyTuple_GET_ITEM(tables.ptr(), static_cast<Py_ssize_t>(i));
    if (!PyDict_Check(table)) throw py::type_error("is_unchanged: expected dicts.");
    PyObject* key = PyTuple_GET_ITEM(keys.ptr(), static_cast<Py_ssize_t>(i));
    PyObject* found = PyDict_GetItemWithError(table, key);
    if (found == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (found != PyTuple_GET_ITEM(values.ptr(), static_cast<Py_ssize_t>(i))) return false;
  }
  for (size_t i = 0; i < counts.size(); ++i) {
    PyObject* table = PyTuple_GET_ITEM(counted.ptr(), static_cast<Py_ssize_t>(i));
    if (!PyDict_Check(table)) throw py::type_error("is_unchanged: expected dicts.");
    if (PyDict_Size(table) != counts[i]) return false;
  }
  for (size_t i = 0; i < objects.size(); ++i) {
    PyObject* object = PyTuple_GET_ITEM(objects.ptr(), static_cast<Py_ssize_t>(i));
    PyObject* cls = PyTuple_GET_ITEM(classes.ptr(), static_cast<Py_ssize_t>(i));
    if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != cls) return false;
  }
  return true;
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
  m.def("is_unchanged", &is_unchanged,
        "Whether dicts have entries that are these very objects, as many as counted, and objects "
        "their classes.");
  m.def("reset_integer_macs", [] { octavo_reset_integer_macs(); });
  m.def("region_shapes", &region_shapes,
        "Shapes of a region program's results from its inputs' shapes and its panels' element "
        "counts. "
        "ValueError where they do not fit.");
  m.def(
      "max_threads", [] { return octavo_max_threads(); },
      "Threads that a kernel called now would use.");
}

// Argument checks with one wording, and the few things that every operator does with tensors
// through libtorch's stable ABI: read a view, allocate a result. Python's wrappers check first and
// with better words; these checks are what memory safety needs.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "out_of_memory.h"

namespace octavo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// Throws `parts`, streamed into one text: `<where>: <expected>, got <actual>. <what to do>`.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline std::string text_of(const int64_t* sizes, int64_t count) {
  std::string text = "[";
  for (int64_t i = 0; i < count; ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  }
  return text + "]";
}

inline std::string shape_of(const Tensor& t) { return text_of(t.sizes().data(), t.dim()); }

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

/// A strided CPU tensor of the dtype.
inline void check_tensor(const char* where, const Tensor& t, ScalarType type) {
  if (!t.defined()) fail(where, ": expected a tensor, got an undefined one.");
  if (!t.is_cpu()) fail(where, ": expected a tensor on the CPU, got another device. Use .cpu().");
  if (t.layout() != torch::headeronly::Layout::Strided) {
    fail(where, ": expected a strided tensor, got another layout. Use .to_dense().");
  }
  if (t.scalar_type() != type) {
    fail(where, ": expected ", name_of(type), ", got ", name_of(t.scalar_type()), ".");
  }
}

inline void check_shape(const char* where, const Tensor& t, std::initializer_list<int64_t> shape) {
  bool equal = t.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; equal && i < shape.size(); ++i) {
    equal = t.size(static_cast<int64_t>(i)) == shape.begin()[i];
  }
  if (!equal) {
    fail(where, ": expected shape ", text_of(shape.begin(), static_cast<int64_t>(shape.size())),
         ", got ", shape_of(t), ".");
  }
}

inline void check_range(const char* where, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    fail(where, ": expected ", low, "..", high, ", got ", value, ".");
  }
}

/// A scale as every kernel wants it: a normal float32 > 0.
inline float checked_scale(const char* where, double scale) {
  const auto s = static_cast<float>(scale);
  if (!(s >= 1.17549435e-38f && s <= 3.40282347e+38f)) {
    fail(where, ": expected a normal float32 > 0, got ", scale, ".");
  }
  return s;
}

/// `axis` in 0 .. dim - 1, negative ones counted from the end.
inline int64_t checked_axis(const char* where, int64_t axis, int64_t dim) {
  if (axis < -dim || axis >= dim) {
    fail(where, ": expected an axis in ", -dim, "..", dim - 1, ", got ", axis, ".");
  }
  return axis < 0 ? axis + dim : axis;
}

/// a * b for a, b >= 0, at most the largest int64: sizes beside a 0 may be any.
inline int64_t product(int64_t a, int64_t b) {
  int64_t result;
  return __builtin_mul_overflow(a, b, &result) ? INT64_MAX : result;
}

/// Product of the sizes after dimension `d`, or 0 where a tensor has no elements.
inline int64_t product_after(const Tensor& x, int64_t d) {
  if (x.numel() == 0) return 0;
  int64_t count = 1;
  while (++d < x.dim()) count *= x.size(d);
  return count;
}

/// An uninitialised strided CPU tensor; sizes and strides are known to fit together. Allocates
/// through the C shim directly: half the time of a dispatcher call. Throws OutOfMemory.
inline Tensor empty_strided(const int64_t* sizes, const int64_t* strides, int64_t dim,
                            ScalarType type) {
  static const int32_t cpu = aoti_torch_device_type_cpu();
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(dim, sizes, strides, dtype, cpu, 0, &handle) != TORCH_SUCCESS) {
    int64_t bytes = type == ScalarType::Double || type == ScalarType::Long     ? 8
                    : type == ScalarType::Byte || type == ScalarType::Char     ? 1
                    : type == ScalarType::Half || type == ScalarType::BFloat16 ? 2
                                                                               : 4;
    for (int64_t d = 0; d < dim; ++d) bytes = product(bytes, sizes[d]);
    throw OutOfMemory(bytes);
  }
  return Tensor(handle);
}

/// Strides of a contiguous tensor.
inline std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride = product(stride, sizes[i] > 1 ? sizes[i] : 1);
  }
  return strides;
}

/// An uninitialised contiguous CPU tensor.
inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType type) {
  return empty_strided(sizes.data(), contiguous_strides(sizes).data(),
                       static_cast<int64_t>(sizes.size()), type);
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  return {t.sizes().data(), t.sizes().data() + t.dim()};
}

/// The tensor itself where it is contiguous, else a contiguous copy.
inline Tensor as_contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  Tensor copy = empty(sizes_of(t), t.scalar_type());
  torch::stable::copy_(copy, t);
  return copy;
}

/// Whether all leading dimensions of x are one dimension of rows with one pitch (elements).
inline bool has_row_pitch(const Tensor& x, int64_t* pitch) {
  const int64_t k = x.size(x.dim() - 1);
  if (x.numel() == 0) {  // nothing is read, whatever the strides
    *pitch = k;
    return true;
  }
  if (k > 1 && x.stride(x.dim() - 1) != 1) return false;
  *pitch = k;
  bool first = true;
  int64_t expected = 0;
  for (int64_t d = x.dim() - 2; d >= 0; --d) {
    if (x.size(d) == 1) continue;
    if (first) {
      *pitch = x.stride(d);
      expected = *pitch * x.size(d);
      first = false;
    } else {
      if (x.stride(d) != expected) return false;
      expected *= x.size(d);
    }
  }
  return *pitch >= 0;
}

/// A tensor [..., k], rank >= 1, as rows that are `pitch` elements apart; a copy where strides
/// allow no such view.
struct RowView {
  Tensor source;
  int64_t count, pitch;
};
inline RowView rows_of(const Tensor& x) {
  int64_t count = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) count *= x.size(d);
  int64_t pitch = 0;
  if (has_row_pitch(x, &pitch)) return {x, count, pitch};
  return {as_contiguous(x), count, x.size(x.dim() - 1)};
}

/// The header of a well-formed panel: uint8 [bytes], 64-byte aligned, of a layout that this machine
/// computes with unless `any_layout`.
inline const PanelHeader& checked_panel(const char* where, const Tensor& panel, bool any_layout) {
  check_tensor(where, panel, ScalarType::Byte);
  const void* data = panel.const_data_ptr();
  if (panel.dim() != 1 || !panel.is_contiguous() || reinterpret_cast<uintptr_t>(data) % 64 != 0) {
    fail(where, ": expected a contiguous, 64-byte aligned panel of one dimension, got shape ",
         shape_of(panel), ". Make it with pack_weight.");
  }
  const PanelCheck check = check_panel(data, panel.numel());
  if (check == PanelCheck::kMalformed) {
    fail(where, ": expected a weight panel, got ", panel.numel(),
         " bytes that are none. Make it with pack_weight.");
  }
  if (check == PanelCheck::kOtherLayout && !any_layout) {
    fail(where,
         ": expected a weight panel in the layout of an instruction set that this machine has, got "
         "another layout. Pack the weight again.");
  }
  return *static_cast<const PanelHeader*>(data);
}

/// The header of a well-formed packed low-bit weight of one order: uint8 [bytes], 64-byte aligned.
inline const LowbitHeader& checked_lowbit(const char* where, const Tensor& packed) {
  check_tensor(where, packed, ScalarType::Byte);
  const void* data = packed.const_data_ptr();
  if (packed.dim() != 1 || !packed.is_contiguous() || reinterpret_cast<uintptr_t>(data) % 64 != 0 ||
      !check_lowbit(data, packed.numel())) {
    fail(where,
         ": expected a packed low-bit weight (contiguous, 64-byte aligned, one dimension), got "
         "shape ",
         shape_of(packed), " that is none. Make it with pack_lowbit.");
  }
  return *static_cast<const LowbitHeader*>(data);
}
inline const LowbitHeader& checked_lowbit(const char* where, const Tensor& packed,
                                          LowbitOrder order) {
  const LowbitHeader& header = checked_lowbit(where, packed);
  if (header.order != static_cast<int32_t>(order)) {
    const bool rows = order == LowbitOrder::kRows;
    fail(where, ": expected a weight packed for ", rows ? "look-ups" : "products", ", got one for ",
         rows ? "products" : "look-ups", ". Pass rows=", rows ? "True" : "False",
         " to pack_lowbit.");
  }
  return header;
}

}  // namespace octavo

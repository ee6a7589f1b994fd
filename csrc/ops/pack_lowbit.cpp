// Operators pack_lowbit, unpack_lowbit and dequantize_lowbit: codes, group scales, zero points,
// level tables and bias of a linear layer or a look-up table to the form the kernels read, and
// back. Check, allocate, call kernels/lowbit_pack.cpp.
#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>

#include "checks.h"
#include "huge_pages.h"
#include "kernels.h"

namespace octavo {
namespace {

/// Most inputs whose sum of u8 x s8 products fits int32: 65,793 * 255 * 128 < 2^31.
constexpr int64_t kLongestRow = 65793;

void check_group_size(int64_t group_size, int64_t in_features, bool rows) {
  if (group_size != 0 && (group_size < 16 || group_size > kLargestGroup || group_size % 16 != 0)) {
    fail("pack_lowbit: group_size: expected 0 or a multiple of 16 in 16..", kLargestGroup, ", got ",
         group_size, ".");
  }
  if (group_size == 0 && !rows && in_features > kLongestRow) {
    fail("pack_lowbit: group_size: expected groups for rows of more than ", kLongestRow,
         " inputs, got 0 for ", in_features, ".");
  }
}

void check_codes(const char* where, const uint8_t* codes, int64_t count, int64_t bits) {
  if (count == 0) return;
  const uint8_t largest = *std::max_element(codes, codes + count);
  if (largest >> bits != 0) {
    fail(where, ": expected 0..", (1 << bits) - 1, " for ", bits, " bits, got ",
         static_cast<int>(largest), ".");
  }
}

/// Normal positive numbers, and bfloat16 values where they are a group's.
void check_scales(const float* scale, int64_t count, bool grouped) {
  for (int64_t i = 0; i < count; ++i) {
    checked_scale("pack_lowbit: scale", scale[i]);
    uint32_t bits;
    std::memcpy(&bits, scale + i, 4);
    if (grouped && (bits & 0xffff) != 0) {
      fail("pack_lowbit: scale: expected bfloat16 values for groups, got ", scale[i],
           " at position ", i, ". Round with .bfloat16().float() before choosing codes.");
    }
  }
}

Tensor pack_lowbit_op(const Tensor& codes, const Tensor& scale, std::optional<Tensor> zero_point,
                      std::optional<Tensor> levels, std::optional<Tensor> bias, int64_t bits,
                      int64_t group_size, bool rows) {
  check_tensor("pack_lowbit: codes", codes, ScalarType::Byte);
  check_tensor("pack_lowbit: scale", scale, ScalarType::Float);
  check_range("pack_lowbit: bits", bits, 2, 8);
  if (codes.dim() != 2) {
    fail("pack_lowbit: codes: expected shape [out_features, in_features], got ", shape_of(codes),
         ".");
  }
  LowbitWeight w{};
  w.order = rows ? LowbitOrder::kRows : LowbitOrder::kColumns;
  w.bits = static_cast<int32_t>(bits);
  w.out_features = codes.size(0);
  w.in_features = codes.size(1);
  w.group_size = group_size;
  if (w.out_features > kLargestFeatures || w.in_features > kLargestFeatures) {
    fail("pack_lowbit: codes: expected fewer, got shape ", shape_of(codes), ".");
  }
  check_group_size(group_size, w.in_features, rows);
  const int64_t groups = lowbit_groups(w.in_features, group_size);
  check_shape("pack_lowbit: scale", scale, {w.out_features, groups});

  const Tensor code = as_contiguous(codes), scales = as_contiguous(scale);
  w.codes = code.const_data_ptr<uint8_t>();
  w.scale = scales.const_data_ptr<float>();
  check_codes("pack_lowbit: codes", w.codes, code.numel(), bits);
  check_scales(w.scale, scales.numel(), group_size != 0);

  Tensor zeros, tables, biases;
  if (zero_point.has_value()) {
    check_tensor("pack_lowbit: zero_point", *zero_point, ScalarType::Byte);
    check_shape("pack_lowbit: zero_point", *zero_point, {w.out_features, groups});
    if (levels.has_value()) {
      fail("pack_lowbit: levels: expected none beside zero_point, got both.");
    }
    if (bits == 8) {
      fail("pack_lowbit: zero_point: expected at most 7 bits, whose levels fit int8, got 8.");
    }
    zeros = as_contiguous(*zero_point);
    w.zero_point = zeros.const_data_ptr<uint8_t>();
    check_codes("pack_lowbit: zero_point", w.zero_point, zeros.numel(), bits);
    w.kind = LowbitKind::kAffine;
  }
  if (levels.has_value()) {
    check_tensor("pack_lowbit: levels", *levels, ScalarType::Char);
    check_shape("pack_lowbit: levels", *levels,
                {(w.out_features + kLowbitColumns - 1) / kLowbitColumns, int64_t{1} << bits});
    tables = as_contiguous(*levels);
    w.levels = tables.const_data_ptr<int8_t>();
    w.kind = LowbitKind::kLevels;
  }
  if (bias.has_value()) {
    if (rows) fail("pack_lowbit: bias: expected none with rows=True, got one.");
    check_tensor("pack_lowbit: bias", *bias, ScalarType::Float);
    check_shape("pack_lowbit: bias", *bias, {w.out_features});
    biases = as_contiguous(*bias);
    w.bias = biases.const_data_ptr<float>();
  }
  const int64_t bytes = lowbit_bytes(w);
  if (bytes < 0) fail("pack_lowbit: codes: expected fewer, got ", shape_of(codes), ".");
  Tensor packed = empty({bytes}, ScalarType::Byte);
  void* const to = packed.mutable_data_ptr();
  write_to_huge_pages(to, bytes, [&] { pack_lowbit(w, to); });
  return packed;
}

const LowbitHeader& header_of(const char* name, const Tensor& packed, int64_t out_features,
                              int64_t in_features) {
  const LowbitHeader& h = checked_lowbit((std::string(name) + ": packed").c_str(), packed);
  if (out_features != h.out_features || in_features != h.in_features) {
    fail(name, ": out_features, in_features: expected ", h.out_features, " and ", h.in_features,
         ", got ", out_features, " and ", in_features, ".");
  }
  return h;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> unpack_lowbit_op(const Tensor& packed,
                                                            int64_t out_features,
                                                            int64_t in_features) {
  const LowbitHeader& h = header_of("unpack_lowbit", packed, out_features, in_features);
  const auto kind = static_cast<LowbitKind>(h.kind);
  const bool affine = kind == LowbitKind::kAffine, tabled = kind == LowbitKind::kLevels;
  Tensor codes = empty({h.out_features, h.in_features}, ScalarType::Byte);
  Tensor scale = empty({h.out_features, h.groups}, ScalarType::Float);
  Tensor zeros = empty({affine ? h.out_features : 0, h.groups}, ScalarType::Byte);
  Tensor levels = empty(
      {tabled ? (h.out_features + kLowbitColumns - 1) / kLowbitColumns : 0, int64_t{1} << h.bits},
      ScalarType::Char);
  unpack_lowbit(&h, codes.mutable_data_ptr<uint8_t>(), scale.mutable_data_ptr<float>(),
                affine ? zeros.mutable_data_ptr<uint8_t>() : nullptr,
                tabled ? levels.mutable_data_ptr<int8_t>() : nullptr, nullptr);
  return {codes, scale, zeros, levels};
}

Tensor dequantize_lowbit_op(const Tensor& packed, int64_t out_features, int64_t in_features) {
  const LowbitHeader& h = header_of("dequantize_lowbit", packed, out_features, in_features);
  Tensor weight = empty({out_features, in_features}, ScalarType::Float);
  if (weight.numel() > 0) dequantize_lowbit(&h, weight.mutable_data_ptr<float>());
  return weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("pack_lowbit", TORCH_BOX(&pack_lowbit_op));
  m.impl("unpack_lowbit", TORCH_BOX(&unpack_lowbit_op));
  m.impl("dequantize_lowbit", TORCH_BOX(&dequantize_lowbit_op));
}

}  // namespace octavo

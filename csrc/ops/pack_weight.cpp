// Operators on integer weights: the canonical bit stream (pack_bits, unpack_bits) and the active
// ISA's panels (pack_weight, unpack_weight). Checks, allocates, calls kernels/pack.cpp.
#include <algorithm>
#include <cmath>
#include <optional>

#include "checks.h"
#include "huge_pages.h"
#include "kernels.h"

namespace octavo {
namespace {

/// Product of the sizes after the first, refusing overflow.
int64_t per_channel_of(const char* where, const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] < 0) fail(where, ": expected sizes >= 0, got ", shape[d], ".");
    if (d > 0 && __builtin_mul_overflow(count, shape[d], &count)) {
      fail(where, ": expected a product of sizes below 2^63, got ",
           text_of(shape.data(), static_cast<int64_t>(shape.size())), ".");
    }
  }
  int64_t total;
  // Eight bits for each element, and room for rounding rows up to bytes, also where there are no
  // rows.
  if (!shape.empty() && (__builtin_mul_overflow(count, shape[0], &total) ||
                         total > INT64_MAX / 16 || count > INT64_MAX / 16)) {
    fail(where, ": expected a product of sizes below 2^59, got ",
         text_of(shape.data(), static_cast<int64_t>(shape.size())), ".");
  }
  return count;
}

/// Lowest and highest code of the width, s8 storage.
void check_codes(const char* where, const Tensor& codes, int64_t bits) {
  const auto* code = codes.const_data_ptr<int8_t>();
  const auto [low, high] = std::minmax_element(code, code + codes.numel());
  if (codes.numel() == 0) return;
  const int limit = 1 << (bits - 1);
  if (*low < -limit || *high >= limit) {
    fail(where, ": expected codes in ", -limit, "..", limit - 1, " for ", bits, " bits, got ",
         *low < -limit ? static_cast<int>(*low) : static_cast<int>(*high), ".");
  }
}

Tensor pack_bits_op(const Tensor& codes, int64_t bits) {
  check_tensor("pack_bits: codes", codes, ScalarType::Char);
  check_range("pack_bits: bits", bits, 2, 8);
  if (codes.dim() < 1) fail("pack_bits: codes: expected shape [O, ...], got [].");
  const Tensor source = as_contiguous(codes);
  check_codes("pack_bits: codes", source, bits);
  const int64_t per_channel = per_channel_of("pack_bits: codes", sizes_of(codes));
  const auto width = static_cast<int32_t>(bits);
  Tensor packed = empty({codes.size(0), packed_row_bytes(per_channel, width)}, ScalarType::Byte);
  pack_bits(source.const_data_ptr<int8_t>(), codes.size(0), per_channel, width,
            packed.mutable_data_ptr<uint8_t>());
  return packed;
}

Tensor unpack_bits_op(const Tensor& packed, std::vector<int64_t> shape, int64_t bits) {
  check_tensor("unpack_bits: packed", packed, ScalarType::Byte);
  check_range("unpack_bits: bits", bits, 2, 8);
  if (shape.empty()) fail("unpack_bits: shape: expected [O, ...], got [].");
  const int64_t per_channel = per_channel_of("unpack_bits: shape", shape);
  const auto width = static_cast<int32_t>(bits);
  check_shape("unpack_bits: packed", packed, {shape[0], packed_row_bytes(per_channel, width)});
  const Tensor source = as_contiguous(packed);
  Tensor codes = empty(shape, ScalarType::Char);
  unpack_bits(source.const_data_ptr<uint8_t>(), shape[0], per_channel, width,
              codes.mutable_data_ptr<int8_t>());
  return codes;
}

Tensor pack_weight_op(const Tensor& codes, const Tensor& scale, std::optional<Tensor> bias,
                      int64_t groups, int64_t bits) {
  check_tensor("pack_weight: codes", codes, ScalarType::Char);
  check_tensor("pack_weight: scale", scale, ScalarType::Float);
  check_range("pack_weight: bits", bits, 2, 8);
  const int64_t dim = codes.dim();
  if (dim < 2 || dim > 4) {
    fail("pack_weight: codes: expected shape [O, I], [O, I, k] or [O, I, kh, kw], got ",
         shape_of(codes), ".");
  }
  const int64_t channels = codes.size(0);
  if (groups < 1 || groups > (channels > 1 ? channels : 1) || channels % groups != 0) {
    fail("pack_weight: groups: expected a divisor of ", channels, ", got ", groups, ".");
  }
  per_channel_of("pack_weight: codes", sizes_of(codes));
  check_shape("pack_weight: scale", scale, {channels});
  const Tensor source = as_contiguous(codes);
  check_codes("pack_weight: codes", source, bits);
  const Tensor scales = as_contiguous(scale);
  for (int64_t c = 0; c < channels; ++c) {
    // Negative where training left a BatchNorm with a negative gamma.
    checked_scale("pack_weight: scale", std::fabs(scales.const_data_ptr<float>()[c]));
  }
  Tensor biases = scales;
  if (bias.has_value()) {
    check_tensor("pack_weight: bias", *bias, ScalarType::Float);
    check_shape("pack_weight: bias", *bias, {channels});
    biases = as_contiguous(*bias);
  }
  WeightShape shape{};
  shape.out_channels = channels;
  if (__builtin_mul_overflow(codes.size(1), groups, &shape.in_channels)) {
    fail("pack_weight: groups: expected fewer, got ", groups, ".");
  }
  shape.groups = groups;
  shape.kernel_h = dim == 4 ? codes.size(2) : 1;
  shape.kernel_w = dim >= 3 ? codes.size(dim - 1) : 1;
  shape.bits = static_cast<int32_t>(bits);
  const PanelHeader header = panel_header(shape);
  if (header.total_bytes < 0)
    fail("pack_weight: codes: expected fewer, got shape ", shape_of(codes), ".");
  Tensor panel = empty({header.total_bytes}, ScalarType::Byte);
  void* const to = panel.mutable_data_ptr();
  write_to_huge_pages(to, panel.numel(), [&] {
    pack_panel(header, source.const_data_ptr<int8_t>(), scales.const_data_ptr<float>(),
               bias.has_value() ? biases.const_data_ptr<float>() : nullptr, to);
  });
  return panel;
}

Tensor unpack_weight_op(const Tensor& panel, std::vector<int64_t> shape) {
  const PanelHeader& header = checked_panel("unpack_weight: panel", panel, /*any_layout=*/true);
  per_channel_of("unpack_weight: shape", shape);
  const int64_t dim = static_cast<int64_t>(shape.size());
  const bool fits = dim >= 2 && dim <= 4 && shape[0] == header.out_channels &&
                    shape[1] == header.in_channels / header.groups &&
                    (dim == 4 ? shape[2] : 1) == header.kernel_h &&
                    (dim >= 3 ? shape[static_cast<size_t>(dim - 1)] : 1) == header.kernel_w;
  if (!fits) {
    fail("unpack_weight: shape: expected ", header.out_channels, ", ",
         header.in_channels / header.groups, ", ", header.kernel_h, ", ", header.kernel_w,
         " (sizes of 1 may be left out), got ", text_of(shape.data(), dim), ".");
  }
  Tensor codes = empty(shape, ScalarType::Char);
  unpack_panel(&header, codes.mutable_data_ptr<int8_t>());
  return codes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(octavo, CPU, m) {
  m.impl("pack_bits", TORCH_BOX(&pack_bits_op));
  m.impl("unpack_bits", TORCH_BOX(&unpack_bits_op));
  m.impl("pack_weight", TORCH_BOX(&pack_weight_op));
  m.impl("unpack_weight", TORCH_BOX(&unpack_weight_op));
}

}  // namespace octavo

// What convolutions and linear layers share: checks of packed weights, sizes, halo, constants,
// epilogue. Every one of them is a product; each kind's own file says what it reads and defines.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels.h"
#include "region/step_row.h"

namespace octavo {

/// A shape with the step's channels; a residual must have it too.
inline Shape with_channels(const ShapeStep& s, Shape shape) {
  const Step& step = s.step();
  shape.c = step.channels;
  if (step.residual >= 0 && s.value(step.residual) != shape) {
    s.fail("a residual of shape " + text_of(shape), text_of(s.value(step.residual)));
  }
  return shape;
}

inline Shape linear_shape(const ShapeStep& s) { return with_channels(s, s.x()); }

inline void derive_residual(const ProgramStep& s, const Shape&, const Shape&, Derived* d) {
  const Step& step = s.step();
  const double s_out = step.params.scale;
  if (step.residual >= 0) d->m = code_factor(s.params(step.residual).scale / s_out);
}

// ---- packed weights

inline void check_weight(const PanelStep& s, int64_t channels, PanelHeader* known) {
  const RegionPanel& panel = s.panel();
  if (panel.type != RegionPanel::Type::kBytes ||
      panel.count < static_cast<int64_t>(sizeof(PanelHeader)) ||
      reinterpret_cast<uintptr_t>(panel.data) % 64 != 0) {
    s.fail_panel("a packed weight", std::to_string(panel.count) + " elements that are none");
  }
  const auto& header = *static_cast<const PanelHeader*>(panel.data);
  if (std::memcmp(&header, known, sizeof(header)) != 0 || header.total_bytes > panel.count) {
    const PanelCheck result = check_panel(panel.data, panel.count);
    if (result == PanelCheck::kOtherLayout) {
      s.fail_panel("in the layout of an instruction set that this machine has",
                   "another layout. Pack the weight again");
    }
    if (result != PanelCheck::kOk) {
      s.fail_panel("a packed weight", std::to_string(panel.count) + " bytes that are none");
    }
    *known = header;
  }
  const int64_t wanted = s.step().channels;
  const ConvGeometry& g = s.step().geometry;
  if (header.out_channels != wanted || header.in_channels != channels ||
      header.kernel_h != g.kernel_h || header.kernel_w != g.kernel_w) {
    const auto text = [](int64_t out, int64_t in, int64_t h, int64_t w) {
      return std::to_string(in) + " to " + std::to_string(out) + " channels, kernel " +
             std::to_string(h) + "x" + std::to_string(w);
    };
    s.fail_panel(text(wanted, channels, g.kernel_h, g.kernel_w),
                 text(header.out_channels, header.in_channels, header.kernel_h, header.kernel_w));
  }
}

/// The same before any sizes are known.
inline const PanelHeader& weight_header(const PanelStep& s) {
  const RegionPanel& panel = s.panel();
  if (panel.type != RegionPanel::Type::kBytes ||
      reinterpret_cast<uintptr_t>(panel.data) % 64 != 0 ||
      check_panel(panel.data, panel.count) != PanelCheck::kOk) {
    s.fail_panel("a packed weight for the active instruction set", "something else");
  }
  const auto& header = *static_cast<const PanelHeader*>(panel.data);
  if (header.out_channels != s.step().channels) {
    s.fail_panel("of " + std::to_string(s.step().channels) + " channels",
                 std::to_string(header.out_channels));
  }
  return header;
}

inline int64_t weight_channels(const PanelStep& s) {
  return s.step().channels == 0 ? 0 : weight_header(s).out_channels;
}

// ---- constants: start, scale and offset of each channel

inline int64_t product_constants_bytes(const Step&, int64_t channels) {
  return 3 * channel_array_bytes(channels);
}

template <class T>
const T* panel_section(const PanelHeader& header, int64_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(&header) + offset);
}

inline void write_product_constants(const ConstantsStep& s, int64_t channels, char* at) {
  const Step& step = s.step();
  const PanelHeader& header = weight_header(s);
  const auto* colsum = panel_section<int32_t>(header, header.colsum_offset);
  const auto* weight_scale = panel_section<float>(header, header.scale_offset);
  const auto* bias = panel_section<float>(header, header.bias_offset);
  auto* start = reinterpret_cast<int32_t*>(at);
  auto* scale = reinterpret_cast<float*>(at + channel_array_bytes(channels));
  auto* offset = reinterpret_cast<float*>(at + 2 * channel_array_bytes(channels));
  const QuantParams& in = s.params(step.x[0]);
  const bool to_float = step.type == ValueType::kFloats;
  const double s_y = to_float ? 1.0 : static_cast<double>(step.params.scale);
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t first = -int64_t{in.zero_point} * colsum[c];
    if (first < std::numeric_limits<int32_t>::min() ||
        first > std::numeric_limits<int32_t>::max()) {
      s.fail_panel("sums within int32", std::to_string(first));
    }
    start[c] = static_cast<int32_t>(first);
    const double m = static_cast<double>(in.scale) * weight_scale[c] / s_y;
    scale[c] = to_float ? s.rounded(m) : s.rounded_factor(m);
    double a = static_cast<double>(bias[c]) / s_y;
    if (!to_float) a += step.params.zero_point;
    if (step.residual >= 0) {
      const QuantParams& r = s.params(step.residual);
      a -= r.zero_point * static_cast<double>(r.scale) / s_y;
    }
    offset[c] = to_float ? s.rounded(a) : s.rounded_offset(a);
  }
}

// ---- run

inline Epilogue epilogue(const RunStep& s) {
  return {s.channel_array<int32_t>(0),
          s.channel_array<float>(1),
          s.channel_array<float>(2),
          s.derived().m,
          s.step().lo,
          s.step().hi,
          s.x_params().zero_point};
}

inline void run_product(const RunStep& s) {
  const Step& step = s.step();
  Image residual;
  if (step.residual >= 0) residual = s.value(step.residual);
  conv_u8(s.x(), step.geometry, s.panel<void>(), epilogue(s),
          step.residual >= 0 ? &residual : nullptr, s.out());
}

inline void write_product(const RunStep& s, const FloatImage& out) {
  conv_f32(s.x(), s.step().geometry, s.panel<void>(), epilogue(s), out);
}

}  // namespace octavo

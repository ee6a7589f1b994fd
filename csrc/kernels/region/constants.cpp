// Derived numbers of region programs: what csrc/README.md's table asks for, formed in double and
// rounded once. Called when a region is made (region_constants), never during a run.
#include <cmath>
#include <cstring>
#include <limits>

#include "region/call.h"

namespace octavo {
namespace {

[[noreturn]] void fail_panel(const Program& program, size_t i, const std::string& expected,
                             const std::string& got) {
  fail_step(program, i, "panel " + std::to_string(program.steps[i].panel) + " to be " + expected,
            got);
}

const PanelHeader& weight_header(const Program& program, size_t i,
                                 const std::vector<RegionPanel>& panels) {
  const RegionPanel& panel = panels[static_cast<size_t>(program.steps[i].panel)];
  if (panel.type != RegionPanel::Type::kBytes ||
      reinterpret_cast<uintptr_t>(panel.data) % 64 != 0 ||
      check_panel(panel.data, panel.count) != PanelCheck::kOk) {
    fail_panel(program, i, "a packed weight for the active instruction set", "something else");
  }
  const auto& header = *static_cast<const PanelHeader*>(panel.data);
  if (header.out_channels != program.steps[i].channels) {
    fail_panel(program, i, "of " + std::to_string(program.steps[i].channels) + " channels",
               std::to_string(header.out_channels));
  }
  return header;
}

template <class T>
const T* section(const PanelHeader& header, int64_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(&header) + offset);
}

/// Channels of every step's value as far as constants need them.
std::vector<int64_t> constant_channels(const Program& program,
                                       const std::vector<RegionPanel>& panels) {
  if (static_cast<int>(panels.size()) != program.panel_count) {
    throw RegionError("region: expected " + std::to_string(program.panel_count) + " panels, got " +
                      std::to_string(panels.size()) + ".");
  }
  std::vector<int64_t> channels(program.steps.size());
  for (size_t i = 0; i < program.steps.size(); ++i) {
    const Step& step = program.steps[i];
    channels[i] = step.channels;
    if (step.kind == StepKind::kAffine) {
      const RegionPanel& panel = panels[static_cast<size_t>(step.panel)];
      if (panel.type != RegionPanel::Type::kFloats || panel.count % 2 != 0) {
        fail_panel(program, i, "float32 [2, C]", std::to_string(panel.count) + " elements");
      }
      channels[i] = panel.count / 2;
    } else if (step.channels > 0) {
      weight_header(program, i,
                    panels);  // its size bounds the channels, so that offsets cannot overflow
    }
  }
  return channels;
}

class Writer {
 public:
  Writer(const Program& program, const std::vector<RegionPanel>& panels, char* bytes)
      : program_(program), panels_(panels), bytes_(bytes) {}

  void run() {
    const std::vector<int64_t> channels = constant_channels(program_, panels_);
    int64_t total = 0;
    const std::vector<int64_t> offsets = lay_out_constants(program_, channels, &total);
    std::memset(bytes_, 0, static_cast<size_t>(total));
    const ConstantsHeader header{kConstantsMagic, program_.hash, total};
    std::memcpy(bytes_, &header, sizeof(header));
    for (index_ = 0; index_ < offsets.size(); ++index_) {
      if (offsets[index_] < 0) continue;
      char* at = bytes_ + offsets[index_];
      const Step& step = program_.steps[index_];
      switch (step.kind) {
        case StepKind::kConv:
        case StepKind::kLinear:
        case StepKind::kConvF32:
        case StepKind::kLinearF32:
          write_product(step, at);
          break;
        case StepKind::kAffine:
          write_affine(step, channels[index_], at);
          break;
        default:
          write_concat(step, reinterpret_cast<uint8_t*>(at));
          break;
      }
    }
  }

 private:
  static int64_t array_bytes(int64_t channels) { return (4 * channels + 63) / 64 * 64; }

  const Step& value(int id) const { return program_.steps[static_cast<size_t>(id)]; }

  /// The one rounding of a derived number.
  float rounded(double number) const {
    const auto value = static_cast<float>(number);
    if (!std::isfinite(value)) {
      fail_step(program_, index_, "scales whose quotient is a finite float32",
                std::to_string(number));
    }
    return value;
  }

  void write_product(const Step& step, char* at) const {
    const PanelHeader& header = weight_header(program_, index_, panels_);
    const auto* colsum = section<int32_t>(header, header.colsum_offset);
    const auto* weight_scale = section<float>(header, header.scale_offset);
    const auto* bias = section<float>(header, header.bias_offset);
    const int64_t channels = header.out_channels;
    auto* start = reinterpret_cast<int32_t*>(at);
    auto* scale = reinterpret_cast<float*>(at + array_bytes(channels));
    auto* offset = reinterpret_cast<float*>(at + 2 * array_bytes(channels));
    const QuantParams& in = value(step.x[0]).params;
    const bool to_float = step.type == ValueType::kFloats;
    const double s_y = to_float ? 1.0 : static_cast<double>(step.params.scale);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t first = -int64_t{in.zero_point} * colsum[c];
      if (first < std::numeric_limits<int32_t>::min() ||
          first > std::numeric_limits<int32_t>::max()) {
        fail_panel(program_, index_, "sums within int32", std::to_string(first));
      }
      start[c] = static_cast<int32_t>(first);
      scale[c] = rounded(static_cast<double>(in.scale) * weight_scale[c] / s_y);
      double a = static_cast<double>(bias[c]) / s_y;
      if (!to_float) a += step.params.zero_point;
      if (step.residual >= 0) {
        const QuantParams& r = value(step.residual).params;
        a -= r.zero_point * static_cast<double>(r.scale) / s_y;
      }
      offset[c] = rounded(a);
    }
  }

  void write_affine(const Step& step, int64_t channels, char* at) const {
    const auto* real = static_cast<const float*>(panels_[static_cast<size_t>(step.panel)].data);
    auto* scale = reinterpret_cast<float*>(at);
    auto* offset = reinterpret_cast<float*>(at + array_bytes(channels));
    const QuantParams& in = value(step.x[0]).params;
    const double s_out = step.params.scale;
    for (int64_t c = 0; c < channels; ++c) {
      const double multiplier = real[c];
      scale[c] = rounded(multiplier * in.scale / s_out);
      offset[c] = rounded((real[channels + c] - multiplier * in.scale * in.zero_point) / s_out +
                          step.params.zero_point);
    }
  }

  void write_concat(const Step& step, uint8_t* table) const {
    for (const int id : step.x) {
      const QuantParams& in = value(id).params;
      const float m = rounded(static_cast<double>(in.scale) / step.params.scale);
      for (int q = 0; q < 256; ++q) {
        const float v = std::fmaf(static_cast<float>(q - in.zero_point), m,
                                  static_cast<float>(step.params.zero_point));
        const float clamped =
            std::fmin(std::fmax(v, 0.0f), static_cast<float>(step.params.max_code));
        *table++ = static_cast<uint8_t>(std::nearbyintf(clamped));
      }
    }
  }

  const Program& program_;
  const std::vector<RegionPanel>& panels_;
  char* bytes_;
  size_t index_ = 0;
};

}  // namespace

int64_t region_constants_bytes(std::string_view text, const std::vector<RegionPanel>& panels) {
  const auto program = parse_program(text);
  int64_t total = 0;
  lay_out_constants(*program, constant_channels(*program, panels), &total);
  return total;
}

void make_region_constants(std::string_view text, const std::vector<RegionPanel>& panels,
                           void* constants) {
  const auto program = parse_program(text);
  Writer(*program, panels, static_cast<char*>(constants)).run();
}

}  // namespace octavo

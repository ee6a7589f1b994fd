// A factor and an offset for each channel: a normalization that could not be folded.
#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

void check_panel(const PanelStep& s, int64_t channels, PanelHeader*) {
  s.check_elements(RegionPanel::Type::kFloats, 2 * channels);
}

int64_t constant_channels(const PanelStep& s) {
  const RegionPanel& panel = s.panel();
  if (panel.type != RegionPanel::Type::kFloats || panel.count % 2 != 0) {
    s.fail_panel("float32 [2, C]", std::to_string(panel.count) + " elements");
  }
  return panel.count / 2;
}

/// Scale and offset of each channel.
int64_t constants_bytes(const Step&, int64_t channels) { return 2 * channel_array_bytes(channels); }

void write_constants(const ConstantsStep& s, int64_t channels, char* at) {
  const auto* real = static_cast<const float*>(s.panel().data);
  auto* scale = reinterpret_cast<float*>(at);
  auto* offset = reinterpret_cast<float*>(at + channel_array_bytes(channels));
  const QuantParams& in = s.params(s.step().x[0]);
  const QuantParams& out = s.step().params;
  const double s_out = out.scale;
  for (int64_t c = 0; c < channels; ++c) {
    const double multiplier = real[c];
    scale[c] = s.rounded_factor(multiplier * in.scale / s_out);
    offset[c] = s.rounded_offset(
        (real[channels + c] - multiplier * in.scale * in.zero_point) / s_out + out.zero_point);
  }
}

void run(const RunStep& s) {
  affine(s.x(), s.channel_array<float>(0), s.channel_array<float>(1), s.step().lo, s.step().hi,
         s.out());
}

}  // namespace

constinit const StepRow affine_step{.name = "affine",
                                    .keys = "x panel s z max lo hi",
                                    .check_panel = check_panel,
                                    .constant_channels = constant_channels,
                                    .constants_bytes = constants_bytes,
                                    .write_constants = write_constants,
                                    .run = run};

}  // namespace octavo

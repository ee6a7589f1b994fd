// The region program (csrc/README.md) as data: parsed, and validated as far as that goes without
// sizes. Programs come from files of strangers: whatever the text, the result is a valid Program or
// a RegionError.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"

namespace octavo {

/// A program, panel or input that does not fit, in the one message form.
struct RegionError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class StepKind : uint8_t {
  kQuantize,
  kQuantizeDynamic,
  kConv,
  kLinear,
  kConvF32,
  kLinearF32,
  kConvDynamic,
  kAdd,
  kMul,
  kConcat,
  kAffine,
  kTable,
  kChannelTable,
  kMaxPool,
  kAvgPool,
  kAdaptiveAvgPool,
  kAdaptiveMaxPool,
  kGatherChannels,
  kSlice,
  kUpsampleNearest,
  kPad,
  kFlatten,
  kUnflatten,
  kToRows,
  kToImage,
};

/// Logical arrangement of a value: [N, C, H, W], [N, C, L] or [..., C].
enum class ValueLayout : uint8_t { kImage, kImage1d, kRows };
/// What a value holds: codes, codes with one QuantParams a sample, or floats.
enum class ValueType : uint8_t { kCodes, kDynamicCodes, kFloats };

/// One line of a program. A key that the kind does not have keeps its default.
struct Step {
  StepKind kind;
  std::vector<int> x;  // values read; concat: all of them, in order
  int y = -1;          // second operand of add and mul
  int residual = -1;   // `r`
  int input = -1;      // `in`
  int panel = -1;
  int64_t channels = 0;
  ConvGeometry geometry;
  int64_t pad_bottom = 0, pad_right = 0;
  float lo = 0.0f, hi = 255.0f;
  bool ceil_mode = false, include_pad = false;
  int64_t divisor = 0;
  std::array<int64_t, 3> size{};             // adaptive pools, upsampling: h, w; unflatten: c, h, w
  std::array<double, 2> scales{};            // upsampling: h, w
  std::array<int64_t, 3> rows{}, columns{};  // slice: start, stop, step
  PadMode mode = PadMode::kConstant;
  float value = 0.0f;

  // Of the value that the step defines.
  QuantParams params;
  ValueLayout layout = ValueLayout::kImage;
  ValueType type = ValueType::kCodes;

  /// Every value that the step reads.
  std::vector<int> reads() const;
};

struct Program {
  std::string text;
  uint64_t hash = 0;        // of text
  std::vector<Step> steps;  // step i defines value i
  std::vector<int> outputs;
  int input_count = 0, panel_count = 0;  // highest index + 1
};

/// Name of a kind, as in the text.
const char* kind_name(StepKind kind);

/// Throws RegionError, naming the line.
std::shared_ptr<const Program> parse_program(std::string_view text);

}  // namespace octavo

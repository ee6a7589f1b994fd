// The region program (csrc/README.md) as data: parsed, and validated as far as that is possible
// without sizes. Programs may come from untrusted files: whatever the text, the result is a valid
// Program or a RegionError.
#pragma once

#include <any>
#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"

namespace octavo {

struct StepRow;

/// A program, panel or input that does not fit, in the one message form.
struct RegionError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Logical arrangement of a value: [N, C, H, W], [N, C, L] or [..., C].
enum class ValueLayout : uint8_t { kImage, kImage1d, kRows };
/// What a value holds: codes, codes with one QuantParams a sample, or floats.
enum class ValueType : uint8_t { kCodes, kDynamicCodes, kFloats };

/// One line of a program. A key that the kind does not have keeps its default.
struct Step {
  const StepRow* row = nullptr;  // of its kind (step_row.h)
  std::vector<int> x;            // values read; concat: all of them, in order
  int y = -1;                    // second operand of add and mul
  int residual = -1;             // `r`
  int input = -1;                // `in`
  int panel = -1;
  int64_t channels = 0;
  ConvGeometry geometry;
  int64_t pad_bottom = 0, pad_right = 0;
  float lo = 0.0f, hi = 255.0f;
  bool ceil_mode = false;
  std::array<int64_t, 2> size{};  // h, w
  std::any own;                   // keys that only this kind has: a struct of its file

  // Of the value that the step defines.
  QuantParams params;
  ValueLayout layout = ValueLayout::kImage;
  ValueType type = ValueType::kCodes;

  /// Every value that the step reads.
  std::vector<int> reads() const;

  /// The struct of own keys: readers make it, everything after them finds it.
  template <class Keys>
  Keys& make_own() {
    if (!own.has_value()) own.emplace<Keys>();
    return *std::any_cast<Keys>(&own);
  }
  template <class Keys>
  const Keys& own_keys() const {
    return *std::any_cast<Keys>(&own);
  }
};

struct Program {
  std::string text;
  uint64_t hash = 0;        // of text
  std::vector<Step> steps;  // step i defines value i
  std::vector<int> outputs;
  int input_count = 0, panel_count = 0;  // highest index + 1
};

/// One step within its program. The functions of a row get one; each stage adds what it knows.
class ProgramStep {
 public:
  ProgramStep(const Program& program, size_t index) : program_(program), index_(index) {}

  const Step& step() const { return program_.steps[index_]; }
  size_t index() const { return index_; }
  const QuantParams& params(int id) const { return program_.steps[static_cast<size_t>(id)].params; }

  /// Throws RegionError "region step <index> (<kind>): expected <expected>, got <got>."
  [[noreturn]] void fail(const std::string& expected, const std::string& got) const;
  [[noreturn]] void fail_panel(const std::string& expected, const std::string& got) const;

 protected:
  const Program& program_;
  size_t index_;
};

/// Throws RegionError, naming the line.
std::shared_ptr<const Program> parse_program(std::string_view text);

}  // namespace octavo

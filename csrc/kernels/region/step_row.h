// What the region driver asks of a kind of step. Each kind has one row, in steps/<kind>.cpp;
// parser, shapes, constants, arena, checks of panels and runner go over rows and know no kind.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "region/arena.h"
#include "region/constants.h"
#include "region/keys.h"
#include "region/panels.h"
#include "region/placement.h"
#include "region/program.h"
#include "region/run.h"
#include "region/shapes.h"

namespace octavo {

/// What a kind reads or defines. kAny: everything; of the value defined, the layout of x.
enum class Layouts : uint8_t { kAny, kImages, kRows };

/// One kind. Functions that a kind does not need stay null.
struct StepRow {
  const char* name;
  const char* keys;  // as csrc/README.md has them: in order, separated by spaces; [key] is optional
  std::span<const Key> own_keys = {};  // readers of the keys that keys.cpp does not have
  Layouts reads = Layouts::kAny;       // of every value read
  Layouts defines = Layouts::kAny;
  ValueType reads_type = ValueType::kCodes;
  ValueType defines_type = ValueType::kCodes;
  bool passes_params = false;  // the value has the parameters of x: there are no keys s, z, max

  /// What takes more than one key to check.
  void (*check)(const Line& line, const Step& step) = nullptr;

  /// Shape of the value; null: that of x.
  Shape (*shape)(const ShapeStep& step) = nullptr;

  /// Numbers that follow from program and sizes, formed in double and rounded once.
  void (*derive)(const ProgramStep& step, const Shape& x, const Shape& value,
                 Derived* derived) = nullptr;

  // ---- memory (placement.h)

  /// Pixels beyond the image that are read of x, on its worst side.
  int64_t (*halo)(const Step& step, const Shape& x, const Shape& value) = nullptr;
  /// Whether x should have memory of its own and not be a range of another value's channels.
  bool (*wants_own_pixels)(const Step& step) = nullptr;
  /// Makes value i a view of a value that it reads, or values that it reads views of value i.
  void (*place)(Placement* placement, int i) = nullptr;

  // ---- panels; every kind with the key `panel` has check_panel

  /// Checks dtype, size and content of one call's panel. channels: of x. known: the last header
  /// found sound.
  void (*check_panel)(const PanelStep& step, int64_t channels, PanelHeader* known) = nullptr;
  /// The one number in the panel that `place` depends on.
  int64_t (*panel_fact)(const PanelStep& step) = nullptr;

  // ---- constants (constants.h)

  /// Channels of the value as the panel gives them, before any sizes are known.
  int64_t (*constant_channels)(const PanelStep& step) = nullptr;
  int64_t (*constants_bytes)(const Step& step, int64_t channels) = nullptr;
  void (*write_constants)(const ConstantsStep& step, int64_t channels, char* at) = nullptr;

  // ---- one of the two

  /// Computes the value's codes.
  void (*run)(const RunStep& step) = nullptr;
  /// Computes floats straight into a result.
  void (*write)(const RunStep& step, const FloatImage& out) = nullptr;
};

/// All kinds, in the order of csrc/README.md (steps.cpp).
std::span<const StepRow* const> step_rows();
/// The row of a kind by its name in the text, or null.
const StepRow* find_step(std::string_view name);

}  // namespace octavo

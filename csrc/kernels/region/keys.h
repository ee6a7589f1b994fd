// Reads the keys of a region program's lines. Keys that several kinds have are rows of keys.cpp; a
// kind reads its own in its file under steps/. Used by program.cpp.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "region/program.h"

namespace octavo {

/// The largest number of steps, and the largest size, stride or index that a program may name. They
/// keep derived numbers far from overflow; real networks stay far below.
inline constexpr int64_t kMaxSteps = int64_t{1} << 16;
inline constexpr int64_t kMaxNumber = int64_t{1} << 31;

/// Takes the text before the next `separator` (or the end) off the front of `rest`. Where nothing
/// is left, rest->data() is null.
std::string_view take(std::string_view* rest, char separator);

/// One line of a program while it is read. Errors name the line.
class Line {
 public:
  /// steps: how many were read before this line.
  Line(std::string_view text, size_t number, size_t steps)
      : text_(text), number_(number), steps_(steps) {}

  [[noreturn]] void fail(const std::string& expected, std::string_view got) const;
  [[noreturn]] void fail(const std::string& expected) const { fail(expected, text_); }

  int64_t integer(std::string_view text, int64_t low, int64_t high) const;

  /// A C99 hexadecimal float, a decimal integer, inf or -inf; never NaN.
  double real(std::string_view text) const;

  /// The id of a value that an earlier line defines.
  int value(std::string_view text) const;

  /// Exactly `count` comma-separated integers.
  template <size_t count>
  std::array<int64_t, count> integers(std::string_view text, int64_t low, int64_t high) const {
    std::array<int64_t, count> values{};
    std::string_view rest = text;
    for (size_t i = 0; i < count; ++i) {
      if (i > 0 && rest.data() == nullptr) fail(std::to_string(count) + " integers", text);
      values[i] = integer(take(&rest, ','), low, high);
    }
    if (rest.data() != nullptr) fail(std::to_string(count) + " integers", text);
    return values;
  }

 private:
  std::string_view text_;
  size_t number_, steps_;
};

/// A key of a line: its name, and what puts its value into the step.
struct Key {
  const char* name;
  void (*read)(const Line& line, std::string_view text, Step* step);
};

/// The reader of a key: the kind's own, else the one that several kinds share.
const Key& find_key(const StepRow& row, std::string_view name);

}  // namespace octavo

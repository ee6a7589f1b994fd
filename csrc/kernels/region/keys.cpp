// Readers of the keys that several kinds of step have, one row each. Called by program.cpp.
#include "region/keys.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>

#include "region/step_row.h"

namespace octavo {
namespace {

void read_layout(const Line& line, std::string_view text, Step* step) {
  constexpr struct {
    const char* name;
    ValueLayout layout;
  } kLayouts[] = {{"image", ValueLayout::kImage},
                  {"image1d", ValueLayout::kImage1d},
                  {"rows", ValueLayout::kRows}};
  for (const auto& known : kLayouts) {
    if (text == known.name) {
      step->layout = known.layout;
      return;
    }
  }
  line.fail("image, image1d or rows", text);
}

void read_scale(const Line& line, std::string_view text, Step* step) {
  const double s = line.real(text);
  step->params.scale = static_cast<float>(s);
  if (!std::isnormal(step->params.scale) || s <= 0.0) line.fail("a normal float32 > 0", text);
}

constexpr Key kKeys[] = {
    {"x",
     [](const Line& line, std::string_view text, Step* step) { step->x = {line.value(text)}; }},
    {"y", [](const Line& line, std::string_view text, Step* step) { step->y = line.value(text); }},
    {"r", [](const Line& line, std::string_view text,
             Step* step) { step->residual = line.value(text); }},
    {"in", [](const Line& line, std::string_view text,
              Step* step) { step->input = static_cast<int>(line.integer(text, 0, kMaxSteps)); }},
    {"panel", [](const Line& line, std::string_view text,
                 Step* step) { step->panel = static_cast<int>(line.integer(text, 0, kMaxSteps)); }},
    {"layout", read_layout},
    {"s", read_scale},
    {"z",
     [](const Line& line, std::string_view text, Step* step) {
       step->params.zero_point = static_cast<int32_t>(line.integer(text, 0, 255));
     }},
    {"max",
     [](const Line& line, std::string_view text, Step* step) {
       // `max` comes after `z` where both are there.
       const int64_t least = std::max(1, step->params.zero_point);
       step->params.max_code = static_cast<int32_t>(line.integer(text, least, 255));
     }},
    {"lo", [](const Line& line, std::string_view text,
              Step* step) { step->lo = static_cast<float>(line.real(text)); }},
    {"hi", [](const Line& line, std::string_view text,
              Step* step) { step->hi = static_cast<float>(line.real(text)); }},
    {"channels", [](const Line& line, std::string_view text,
                    Step* step) { step->channels = line.integer(text, 0, kMaxNumber); }},
    {"kernel",
     [](const Line& line, std::string_view text, Step* step) {
       const auto [h, w] = line.integers<2>(text, 1, kMaxNumber);
       step->geometry.kernel_h = h, step->geometry.kernel_w = w;
     }},
    {"stride",
     [](const Line& line, std::string_view text, Step* step) {
       const auto [h, w] = line.integers<2>(text, 1, kMaxNumber);
       step->geometry.stride_h = h, step->geometry.stride_w = w;
     }},
    {"dilation",
     [](const Line& line, std::string_view text, Step* step) {
       const auto [h, w] = line.integers<2>(text, 1, kMaxNumber);
       step->geometry.dilation_h = h, step->geometry.dilation_w = w;
     }},
    {"pad",
     [](const Line& line, std::string_view text, Step* step) {
       const auto [top, left, bottom, right] = line.integers<4>(text, 0, kMaxNumber);
       step->geometry.pad_top = top, step->geometry.pad_left = left;
       step->pad_bottom = bottom, step->pad_right = right;
     }},
    {"ceil", [](const Line& line, std::string_view text,
                Step* step) { step->ceil_mode = line.integer(text, 0, 1) != 0; }},
    {"size", [](const Line& line, std::string_view text,
                Step* step) { step->size = line.integers<2>(text, 0, kMaxNumber); }},
};

}  // namespace

std::string_view take(std::string_view* rest, char separator) {
  const size_t at = rest->find(separator);
  const std::string_view head = rest->substr(0, at);
  *rest = at == std::string_view::npos ? std::string_view() : rest->substr(at + 1);
  return head;
}

void Line::fail(const std::string& expected, std::string_view got) const {
  std::string shown(got.substr(0, 77));
  for (char& c : shown) {
    if (c < ' ' || c > '~') c = '?';
  }
  throw RegionError("region program, line " + std::to_string(number_) + ": expected " + expected +
                    ", got '" + shown + (got.size() > 77 ? "...'." : "'."));
}

int64_t Line::integer(std::string_view text, int64_t low, int64_t high) const {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  // from_chars also reads leading zeros and "-0", which name a number a second time: one spelling
  // only.
  const bool spelled =
      error == std::errc() && end == text.data() + text.size() && std::to_string(value) == text;
  if (!spelled || value < low || value > high) {
    fail("an integer in " + std::to_string(low) + ".." + std::to_string(high), text);
  }
  return value;
}

double Line::real(std::string_view text) const {
  std::string_view digits = text;
  const bool negative = !digits.empty() && digits[0] == '-';
  if (negative) digits.remove_prefix(1);
  double value = std::numeric_limits<double>::infinity();
  if (digits != "inf") {
    const bool hex = digits.substr(0, 2) == "0x";
    if (hex) digits.remove_prefix(2);
    // A digit must follow: from_chars would read a second sign, "inf" or "nan" here.
    const bool starts =
        !digits.empty() && (std::isxdigit(static_cast<unsigned char>(digits[0])) != 0);
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value,
                        hex ? std::chars_format::hex : std::chars_format::fixed);
    if (!starts || error != std::errc() || end != digits.data() + digits.size() ||
        !std::isfinite(value)) {
      fail("a number (decimal integer, hexadecimal float, inf or -inf)", text);
    }
  }
  return negative ? -value : value;
}

int Line::value(std::string_view text) const {
  if (steps_ == 0) fail("a step before the first use of a value", text);
  return static_cast<int>(integer(text, 0, static_cast<int64_t>(steps_) - 1));
}

const Key& find_key(const StepRow& row, std::string_view name) {
  for (const Key& key : row.own_keys) {
    if (name == key.name) return key;
  }
  for (const Key& key : kKeys) {
    if (name == key.name) return key;
  }
  throw std::logic_error("region program: a key without a reader");
}

}  // namespace octavo

// Parses region programs. One table row a kind lists its keys in order; one function reads each
// key. Called by call.cpp.
#include "region/program.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>

namespace octavo {
namespace {

/// Most steps, and the largest size, stride or index that a program may name. They keep derived
/// numbers far from overflow; real networks stay far below.
constexpr size_t kMaxSteps = 1 << 16;
constexpr int64_t kMaxNumber = int64_t{1} << 31;

struct KindRow {
  StepKind kind;
  const char* name;
  const char* keys;  // space-separated, in order; [key] is optional
};

constexpr KindRow kKinds[] = {
    {StepKind::kQuantize, "quantize", "in layout s z max"},
    {StepKind::kQuantizeDynamic, "quantize_dynamic", "in layout max"},
    {StepKind::kConv, "conv", "x panel channels kernel stride pad dilation s z max lo hi [r]"},
    {StepKind::kLinear, "linear", "x panel channels s z max lo hi [r]"},
    {StepKind::kConvF32, "conv_f32", "x panel channels kernel stride pad dilation lo hi"},
    {StepKind::kLinearF32, "linear_f32", "x panel channels lo hi"},
    {StepKind::kConvDynamic, "conv_dynamic", "x panel channels kernel stride pad dilation"},
    {StepKind::kAdd, "add", "x y s z max lo hi"},
    {StepKind::kMul, "mul", "x y s z max lo hi"},
    {StepKind::kConcat, "concat", "xs s z max"},
    {StepKind::kAffine, "affine", "x panel s z max lo hi"},
    {StepKind::kTable, "table", "x panel s z max"},
    {StepKind::kChannelTable, "channel_table", "x panel s z max"},
    {StepKind::kMaxPool, "max_pool", "x kernel stride pad dilation ceil"},
    {StepKind::kAvgPool, "avg_pool", "x kernel stride pad ceil include_pad divisor s z max"},
    {StepKind::kAdaptiveAvgPool, "adaptive_avg_pool", "x size s z max"},
    {StepKind::kAdaptiveMaxPool, "adaptive_max_pool", "x size"},
    {StepKind::kGatherChannels, "gather_channels", "x panel"},
    {StepKind::kSlice, "slice", "x h w"},
    {StepKind::kUpsampleNearest, "upsample_nearest", "x size scale"},
    {StepKind::kPad, "pad", "x pad mode value"},
    {StepKind::kFlatten, "flatten", "x"},
    {StepKind::kUnflatten, "unflatten", "x size3"},
    {StepKind::kToRows, "to_rows", "x"},
    {StepKind::kToImage, "to_image", "x"},
};

/// Takes the text before the next `separator` (or the end) off the front of `rest`.
std::string_view take(std::string_view* rest, char separator) {
  const size_t at = rest->find(separator);
  const std::string_view head = rest->substr(0, at);
  *rest = at == std::string_view::npos ? std::string_view() : rest->substr(at + 1);
  return head;
}

/// One line of a program under the reader's eye: where errors point to.
class Line {
 public:
  Line(std::string_view text, size_t number) : text_(text), number_(number) {}

  [[noreturn]] void fail(const std::string& expected, std::string_view got) const {
    std::string shown(got.substr(0, 77));
    for (char& c : shown) {
      if (c < ' ' || c > '~') c = '?';
    }
    throw RegionError("region program, line " + std::to_string(number_) + ": expected " + expected +
                      ", got '" + shown + (got.size() > 77 ? "...'." : "'."));
  }
  [[noreturn]] void fail(const std::string& expected) const { fail(expected, text_); }

  int64_t integer(std::string_view text, int64_t low, int64_t high) const {
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

  /// A C99 hexadecimal float, a decimal integer, inf or -inf; never NaN.
  double real(std::string_view text) const {
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
  size_t number_;
};

class Parser {
 public:
  explicit Parser(std::string_view text) : program_(std::make_shared<Program>()) {
    program_->text = text;
    program_->hash = 1469598103934665603u;  // FNV-1a
    for (const char c : text) {
      program_->hash = (program_->hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
    }
  }

  std::shared_ptr<const Program> run() {
    std::string_view rest = program_->text;
    size_t number = 0;
    while (!rest.empty()) {
      ++number;
      if (rest.find('\n') == std::string_view::npos) {
        Line(rest, number).fail("a newline after every line", rest);
      }
      const std::string_view text = take(&rest, '\n');
      const Line line(text, number);
      if (number == 1) {
        if (text != "octavo.region 1") line.fail("'octavo.region 1'");
      } else if (text.substr(0, 4) == "out ") {
        read_output(line, text.substr(4));
      } else {
        read_step(line, text);
      }
    }
    if (program_->outputs.empty()) {
      throw RegionError("region program: expected at least one 'out' line, got none.");
    }
    return program_;
  }

 private:
  void read_output(const Line& line, std::string_view text) {
    const int id = value_id(line, text, program_->steps.size());
    if (program_->steps[static_cast<size_t>(id)].type == ValueType::kDynamicCodes) {
      line.fail("a value that can leave the region", text);
    }
    program_->outputs.push_back(id);
  }

  void read_step(const Line& line, std::string_view rest) {
    if (!program_->outputs.empty()) line.fail("'out' lines only after the first 'out'");
    if (program_->steps.size() >= kMaxSteps) line.fail("at most 65536 steps");
    const std::string_view id = take(&rest, ' ');
    if (id != std::to_string(program_->steps.size())) {
      line.fail("'" + std::to_string(program_->steps.size()) + " = <kind> ...'");
    }
    if (take(&rest, ' ') != "=") line.fail("'=' after the id");
    const std::string_view name = take(&rest, ' ');
    const KindRow* row = nullptr;
    for (const KindRow& r : kKinds) {
      if (name == r.name) row = &r;
    }
    if (row == nullptr) line.fail("a kind of step", name);

    Step step{};
    step.kind = row->kind;
    std::string_view keys = row->keys;
    while (keys.data() != nullptr) {
      std::string_view key = take(&keys, ' ');
      if (key.front() == '[') {
        if (rest.data() == nullptr) break;
        key = key.substr(1, key.size() - 2);
      }
      if (rest.data() == nullptr) line.fail("the key '" + std::string(key) + "'");
      std::string_view pair = take(&rest, ' ');
      const std::string_view written = take(&pair, '=');
      // xs and size3 are x and size with another number of entries.
      const std::string_view spelled = key == "xs" ? "x" : key == "size3" ? "size" : key;
      if (written != spelled) line.fail("the key '" + std::string(spelled) + "'", written);
      read_key(line, key, pair, &step);
    }
    if (rest.data() != nullptr) line.fail("the end of the line", rest);
    finish(line, &step);
    program_->steps.push_back(std::move(step));
  }

  void read_key(const Line& line, std::string_view key, std::string_view text, Step* step) {
    ConvGeometry& g = step->geometry;
    if (key == "x" || key == "y" || key == "r") {
      const int id = value_id(line, text, program_->steps.size());
      if (key == "x") {
        step->x = {id};
      } else {
        (key == "y" ? step->y : step->residual) = id;
      }
    } else if (key == "xs") {
      do {
        step->x.push_back(value_id(line, take(&text, ','), program_->steps.size()));
      } while (text.data() != nullptr);
    } else if (key == "in" || key == "panel") {
      const auto index = static_cast<int>(line.integer(text, 0, kMaxSteps));
      (key == "in" ? step->input : step->panel) = index;
      int& count = key == "in" ? program_->input_count : program_->panel_count;
      count = std::max(count, index + 1);
    } else if (key == "layout") {
      step->layout = text == "image"     ? ValueLayout::kImage
                     : text == "image1d" ? ValueLayout::kImage1d
                     : text == "rows"    ? ValueLayout::kRows
                                      : (line.fail("image, image1d or rows", text), ValueLayout());
    } else if (key == "s") {
      const double s = line.real(text);
      step->params.scale = static_cast<float>(s);
      if (!std::isnormal(step->params.scale) || s <= 0.0) line.fail("a normal float32 > 0", text);
    } else if (key == "z") {
      step->params.zero_point = static_cast<int32_t>(line.integer(text, 0, 255));
    } else if (key == "max") {
      // `max` comes after `z` where both are there.
      step->params.max_code =
          static_cast<int32_t>(line.integer(text, std::max(1, step->params.zero_point), 255));
    } else if (key == "lo" || key == "hi") {
      (key == "lo" ? step->lo : step->hi) = static_cast<float>(line.real(text));
    } else if (key == "channels") {
      step->channels = line.integer(text, 0, kMaxNumber);
    } else if (key == "kernel") {
      const auto v = line.integers<2>(text, 1, kMaxNumber);
      g.kernel_h = v[0], g.kernel_w = v[1];
    } else if (key == "stride") {
      const auto v = line.integers<2>(text, 1, kMaxNumber);
      g.stride_h = v[0], g.stride_w = v[1];
    } else if (key == "dilation") {
      const auto v = line.integers<2>(text, 1, kMaxNumber);
      g.dilation_h = v[0], g.dilation_w = v[1];
    } else if (key == "pad") {
      const auto v = line.integers<4>(text, 0, kMaxNumber);
      g.pad_top = v[0], g.pad_left = v[1];
      step->pad_bottom = v[2], step->pad_right = v[3];
    } else if (key == "ceil") {
      step->ceil_mode = line.integer(text, 0, 1) != 0;
    } else if (key == "include_pad") {
      step->include_pad = line.integer(text, 0, 1) != 0;
    } else if (key == "divisor") {
      step->divisor = line.integer(text, 0, kMaxNumber);
    } else if (key == "size") {
      const auto v = line.integers<2>(text, 0, kMaxNumber);
      step->size = {v[0], v[1], 0};
    } else if (key == "size3") {
      step->size = line.integers<3>(text, 0, kMaxNumber);
    } else if (key == "scale") {
      std::string_view rest = text;
      step->scales[0] = line.real(take(&rest, ','));
      if (rest.data() == nullptr) line.fail("2 numbers", text);
      step->scales[1] = line.real(rest);
      for (const double s : step->scales) {
        if (!(s >= 0.0 && s <= 65536.0)) line.fail("numbers in 0..65536", text);
      }
    } else if (key == "h" || key == "w") {
      const auto v = line.integers<3>(text, -1, kMaxNumber);
      if (v[0] < 0 || v[2] < 1) line.fail("start >= 0, stop >= -1, step >= 1", text);
      (key == "h" ? step->rows : step->columns) = v;
    } else if (key == "mode") {
      constexpr const char* kModes[] = {"constant", "reflect", "replicate", "circular"};
      int found = -1;
      for (int i = 0; i < 4; ++i) {
        if (text == kModes[i]) found = i;
      }
      if (found < 0) line.fail("constant, reflect, replicate or circular", text);
      step->mode = static_cast<PadMode>(found);
    } else if (key == "value") {
      step->value = static_cast<float>(line.real(text));
    } else {
      throw std::logic_error("region program: a key without a reader");
    }
  }

  /// Everything about a step that takes more than one key to check, and what its value inherits.
  void finish(const Line& line, Step* step) const {
    const StepKind kind = step->kind;
    if (kind == StepKind::kQuantize) return;
    if (kind == StepKind::kQuantizeDynamic) {
      if (step->layout == ValueLayout::kRows) line.fail("layout image or image1d");
      step->type = ValueType::kDynamicCodes;
      return;
    }

    const Step& source = program_->steps[static_cast<size_t>(step->x[0])];
    const ValueType wanted =
        kind == StepKind::kConvDynamic ? ValueType::kDynamicCodes : ValueType::kCodes;
    const bool wants_rows = kind == StepKind::kLinear || kind == StepKind::kLinearF32 ||
                            kind == StepKind::kUnflatten || kind == StepKind::kToImage;
    const bool wants_image = kind == StepKind::kConv || kind == StepKind::kConvF32 ||
                             kind == StepKind::kConvDynamic || kind == StepKind::kMaxPool ||
                             kind == StepKind::kAvgPool || kind == StepKind::kAdaptiveAvgPool ||
                             kind == StepKind::kAdaptiveMaxPool || kind == StepKind::kSlice ||
                             kind == StepKind::kUpsampleNearest || kind == StepKind::kPad ||
                             kind == StepKind::kFlatten || kind == StepKind::kToRows;
    for (const int id : step->reads()) {
      const Step& read = program_->steps[static_cast<size_t>(id)];
      const std::string name = "value " + std::to_string(id);
      if (read.type != wanted) line.fail(name + " to hold what this kind reads");
      if (read.layout != source.layout) line.fail(name + " in the layout of x");
      if (wants_rows && read.layout != ValueLayout::kRows) line.fail(name + " as rows");
      if (wants_image && read.layout == ValueLayout::kRows) line.fail(name + " as an image");
    }

    step->layout = kind == StepKind::kFlatten || kind == StepKind::kToRows ? ValueLayout::kRows
                   : kind == StepKind::kUnflatten || kind == StepKind::kToImage
                       ? ValueLayout::kImage
                       : source.layout;
    // Kinds without s, z and max pass on those of x.
    switch (kind) {
      case StepKind::kMaxPool:
      case StepKind::kAdaptiveMaxPool:
      case StepKind::kGatherChannels:
      case StepKind::kSlice:
      case StepKind::kUpsampleNearest:
      case StepKind::kPad:
      case StepKind::kFlatten:
      case StepKind::kUnflatten:
      case StepKind::kToRows:
      case StepKind::kToImage:
        step->params = source.params;
        break;
      case StepKind::kConvF32:
      case StepKind::kLinearF32:
      case StepKind::kConvDynamic:
        step->type = ValueType::kFloats;
        break;
      default:
        break;
    }
    const bool has_codes = step->type == ValueType::kCodes;
    const bool has_clamp = kind == StepKind::kConv || kind == StepKind::kLinear ||
                           kind == StepKind::kAdd || kind == StepKind::kMul ||
                           kind == StepKind::kAffine;
    if (has_clamp && has_codes && !(step->lo >= 0.0f && step->hi <= 255.0f)) {
      line.fail("lo and hi in 0..255");
    }
    if ((has_clamp || !has_codes) && !(step->lo <= step->hi)) line.fail("lo <= hi");
    if (kind == StepKind::kMaxPool || kind == StepKind::kAvgPool) check_pool_padding(line, *step);
    if (kind == StepKind::kPad && !std::isfinite(step->value)) line.fail("a finite value");
  }

  /// Padding of at most half a window, as torch asks: no window lies outside the image.
  static void check_pool_padding(const Line& line, const Step& step) {
    const ConvGeometry& g = step.geometry;
    const int64_t reach_h = g.dilation_h * (g.kernel_h - 1) + 1;
    const int64_t reach_w = g.dilation_w * (g.kernel_w - 1) + 1;
    if (std::max(g.pad_top, step.pad_bottom) > reach_h / 2 ||
        std::max(g.pad_left, step.pad_right) > reach_w / 2) {
      line.fail("padding of at most half the window");
    }
  }

  int value_id(const Line& line, std::string_view text, size_t count) const {
    if (count == 0) line.fail("a step before the first use of a value", text);
    return static_cast<int>(line.integer(text, 0, static_cast<int64_t>(count) - 1));
  }

  std::shared_ptr<Program> program_;
};

}  // namespace

std::vector<int> Step::reads() const {
  std::vector<int> values = x;
  if (y >= 0) values.push_back(y);
  if (residual >= 0) values.push_back(residual);
  return values;
}

const char* kind_name(StepKind kind) {
  for (const KindRow& row : kKinds) {
    if (row.kind == kind) return row.name;
  }
  return "?";
}

std::shared_ptr<const Program> parse_program(std::string_view text) { return Parser(text).run(); }

}  // namespace octavo

// Shape inference of region programs: one case a kind. Called by arena.cpp and, through
// ops/exports.cpp, by Python's fake kernel.
#include "region/shapes.h"

#include <algorithm>

namespace octavo {
namespace {

/// Largest size of one dimension: sums and products with the program's own numbers (at most 2^31)
/// stay in int64.
constexpr int64_t kMaxSize = int64_t{1} << 40;
/// Most elements of one value.
constexpr int64_t kMaxElements = int64_t{1} << 48;

std::string text_of(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  }
  return text + "]";
}

std::string text_of(const Shape& shape) { return text_of(shape.logical()); }

/// One step's view of the shapes so far.
class Inference {
 public:
  Inference(const Program& program, const std::vector<std::vector<int64_t>>& inputs,
            const std::vector<int64_t>& panel_counts)
      : program_(program), inputs_(inputs), panel_counts_(panel_counts) {}

  std::vector<Shape> run() {
    if (static_cast<int>(inputs_.size()) != program_.input_count) {
      throw RegionError("region: expected " + std::to_string(program_.input_count) +
                        " inputs, got " + std::to_string(inputs_.size()) + ".");
    }
    if (static_cast<int>(panel_counts_.size()) != program_.panel_count) {
      throw RegionError("region: expected " + std::to_string(program_.panel_count) +
                        " panels, got " + std::to_string(panel_counts_.size()) + ".");
    }
    shapes_.reserve(program_.steps.size());
    for (index_ = 0; index_ < program_.steps.size(); ++index_) {
      shapes_.push_back(shape_of(program_.steps[index_]));
      check_size(shapes_.back());
    }
    return std::move(shapes_);
  }

 private:
  [[noreturn]] void fail(const std::string& expected, const std::string& got) const {
    fail_step(program_, index_, expected, got);
  }

  const Shape& value(int id) const { return shapes_[static_cast<size_t>(id)]; }

  void check_size(const Shape& shape) const {
    if (shape.layout == ValueLayout::kImage1d && shape.h != 1) {
      fail("[N, C, L] to keep its height of 1", std::to_string(shape.h));
    }
    // Zero sizes count as one: the product of the others must not overflow either.
    int64_t count = 1;
    for (const int64_t size : shape.logical()) {
      if (size < 0 || size > kMaxSize ||
          __builtin_mul_overflow(count, std::max<int64_t>(size, 1), &count) ||
          count > kMaxElements) {
        fail("a value of at most 2^48 elements", text_of(shape));
      }
    }
  }

  Shape input_shape(const Step& step) const {
    const std::vector<int64_t>& sizes = inputs_[static_cast<size_t>(step.input)];
    const size_t rank = sizes.size();
    for (const int64_t size : sizes) {
      if (size < 0 || size > kMaxSize) fail("input sizes in 0..2^40", text_of(sizes));
    }
    Shape shape;
    shape.layout = step.layout;
    if (step.layout == ValueLayout::kRows) {
      if (rank < 1) fail("an input with at least one dimension", "[]");
      shape.lead.assign(sizes.begin(), sizes.end() - 1);
      shape.c = sizes.back();
      count_rows(&shape);
      return shape;
    }
    const size_t wanted = step.layout == ValueLayout::kImage ? 4 : 3;
    if (rank != wanted) {
      fail("an input of " + std::to_string(wanted) + " dimensions", text_of(sizes));
    }
    shape.n = sizes[0], shape.c = sizes[1], shape.w = sizes[rank - 1];
    shape.h = wanted == 4 ? sizes[2] : 1;
    return shape;
  }

  void count_rows(Shape* shape) const {
    shape->w = 1;
    for (const int64_t size : shape->lead) {
      if (__builtin_mul_overflow(shape->w, size, &shape->w)) {
        fail("fewer than 2^63 rows", text_of(*shape));
      }
    }
  }

  /// Size after a window (convolution or pooling) along one axis, `after` being the padding behind
  /// it.
  int64_t window_size(int64_t size, int64_t kernel, int64_t stride, int64_t before, int64_t after,
                      int64_t dilation, bool ceil_mode) const {
    const int64_t room = size + before + after - dilation * (kernel - 1) - 1;
    if (room < 0) {
      fail("a window that fits into the padded input of " + std::to_string(size + before + after),
           "a reach of " + std::to_string(dilation * (kernel - 1) + 1));
    }
    int64_t out = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
    // torch: the last window must start inside the input or its padding before it.
    if (ceil_mode && (out - 1) * stride >= size + before) --out;
    return out;
  }

  void apply_window(const Step& s, Shape* shape) const {
    const ConvGeometry& g = s.geometry;
    shape->h = window_size(shape->h, g.kernel_h, g.stride_h, g.pad_top, s.pad_bottom, g.dilation_h,
                           s.ceil_mode);
    shape->w = window_size(shape->w, g.kernel_w, g.stride_w, g.pad_left, s.pad_right, g.dilation_w,
                           s.ceil_mode);
  }

  int64_t sliced(int64_t size, const std::array<int64_t, 3>& range) const {
    const auto [start, stop, step] = range;
    const int64_t end = stop < 0 ? size : std::min(stop, size);
    return start >= end ? 0 : (end - start + step - 1) / step;
  }

  int64_t upsampled(int64_t size, int64_t wanted, double scale) const {
    const int64_t out =
        wanted > 0 ? wanted : static_cast<int64_t>(static_cast<double>(size) * scale);
    if (out < 1 || size < 1) {
      fail("upsampling to at least one pixel from at least one",
           std::to_string(size) + " to " + std::to_string(out));
    }
    return out;
  }

  Shape shape_of(const Step& step) const {
    if (step.input >= 0) return input_shape(step);
    Shape shape = value(step.x[0]);
    switch (step.kind) {
      case StepKind::kQuantize:
      case StepKind::kQuantizeDynamic:
        break;
      case StepKind::kConv:
      case StepKind::kConvF32:
      case StepKind::kConvDynamic:
        apply_window(step, &shape);
        [[fallthrough]];
      case StepKind::kLinear:
      case StepKind::kLinearF32:
        shape.c = step.channels;
        if (step.residual >= 0 && value(step.residual) != shape) {
          fail("a residual of shape " + text_of(shape), text_of(value(step.residual)));
        }
        break;
      case StepKind::kAdd:
        if (value(step.y) != shape) fail("y of shape " + text_of(shape), text_of(value(step.y)));
        break;
      case StepKind::kMul: {
        Shape gate = shape;
        gate.h = gate.w = 1;
        const bool broadcasts = shape.layout != ValueLayout::kRows && value(step.y) == gate;
        if (value(step.y) != shape && !broadcasts) {
          fail("y of shape " + text_of(shape) + " or with one pixel", text_of(value(step.y)));
        }
        break;
      }
      case StepKind::kConcat: {
        Shape first = shape;
        shape.c = 0;
        for (const int id : step.x) {
          first.c = value(id).c;
          if (value(id) != first) {
            fail("values that differ in channels only", text_of(value(id)));
          }
          shape.c += first.c;
        }
        break;
      }
      case StepKind::kAffine:
      case StepKind::kTable:
      case StepKind::kChannelTable:
        break;
      case StepKind::kMaxPool:
      case StepKind::kAvgPool:
        apply_window(step, &shape);
        break;
      case StepKind::kAdaptiveAvgPool:
      case StepKind::kAdaptiveMaxPool:
        if (step.size[0] > 0) shape.h = step.size[0];
        if (step.size[1] > 0) shape.w = step.size[1];
        if (value(step.x[0]).h < 1 || value(step.x[0]).w < 1) {
          fail("an image of at least one pixel", text_of(value(step.x[0])));
        }
        break;
      case StepKind::kGatherChannels:
        shape.c = panel_counts_[static_cast<size_t>(step.panel)];
        break;
      case StepKind::kSlice:
        shape.h = sliced(shape.h, step.rows);
        shape.w = sliced(shape.w, step.columns);
        break;
      case StepKind::kUpsampleNearest:
        shape.h = upsampled(shape.h, step.size[0], step.scales[0]);
        shape.w = upsampled(shape.w, step.size[1], step.scales[1]);
        break;
      case StepKind::kPad:
        check_padding(step, shape);
        shape.h += step.geometry.pad_top + step.pad_bottom;
        shape.w += step.geometry.pad_left + step.pad_right;
        break;
      case StepKind::kFlatten: {
        Shape rows;
        rows.layout = ValueLayout::kRows;
        rows.lead = {shape.n};
        rows.w = shape.n;
        rows.c = shape.c * shape.h * shape.w;  // checked: the product of all sizes is below 2^48
        return rows;
      }
      case StepKind::kToRows: {
        Shape rows;
        rows.layout = ValueLayout::kRows;
        rows.lead = {shape.n, shape.h, shape.w};
        if (shape.layout == ValueLayout::kImage1d) rows.lead = {shape.n, shape.w};
        rows.c = shape.c;
        count_rows(&rows);
        return rows;
      }
      case StepKind::kUnflatten: {
        Shape image;
        image.c = step.size[0], image.h = step.size[1], image.w = step.size[2];
        check_size(image);
        if (shape.lead.size() != 1 || shape.c != image.c * image.h * image.w) {
          fail("rows [N, " + std::to_string(image.c * image.h * image.w) + "]", text_of(shape));
        }
        image.n = shape.lead[0];
        return image;
      }
      case StepKind::kToImage: {
        if (shape.lead.size() != 3) fail("rows [N, H, W, C]", text_of(shape));
        Shape image;
        image.n = shape.lead[0], image.h = shape.lead[1], image.w = shape.lead[2];
        image.c = shape.c;
        return image;
      }
    }
    return shape;
  }

  void check_padding(const Step& step, const Shape& shape) const {
    const int64_t most_h = std::max(step.geometry.pad_top, step.pad_bottom);
    const int64_t most_w = std::max(step.geometry.pad_left, step.pad_right);
    const bool fits = step.mode == PadMode::kConstant ||
                      // An axis without padding is never looked at beyond its ends.
                      (step.mode == PadMode::kReflect && (most_h == 0 || most_h < shape.h) &&
                       (most_w == 0 || most_w < shape.w)) ||
                      (step.mode == PadMode::kReplicate && (most_h == 0 || shape.h > 0) &&
                       (most_w == 0 || shape.w > 0)) ||
                      (step.mode == PadMode::kCircular && most_h <= shape.h && most_w <= shape.w);
    if (!fits) {
      fail("padding that the image can be continued by", std::to_string(most_h) + " rows and " +
                                                             std::to_string(most_w) +
                                                             " columns for " + text_of(shape));
    }
  }

  const Program& program_;
  const std::vector<std::vector<int64_t>>& inputs_;
  const std::vector<int64_t>& panel_counts_;
  std::vector<Shape> shapes_;
  size_t index_ = 0;
};

}  // namespace

std::vector<int64_t> Shape::logical() const {
  if (layout == ValueLayout::kRows) {
    std::vector<int64_t> sizes = lead;
    sizes.push_back(c);
    return sizes;
  }
  if (layout == ValueLayout::kImage1d) return {n, c, w};
  return {n, c, h, w};
}

void fail_step(const Program& program, size_t index, const std::string& expected,
               const std::string& got) {
  throw RegionError("region step " + std::to_string(index) + " (" +
                    kind_name(program.steps[index].kind) + "): expected " + expected + ", got " +
                    got + ".");
}

std::vector<Shape> infer_shapes(const Program& program,
                                const std::vector<std::vector<int64_t>>& inputs,
                                const std::vector<int64_t>& panel_counts) {
  return Inference(program, inputs, panel_counts).run();
}

std::vector<std::vector<int64_t>> region_output_shapes(
    std::string_view text, const std::vector<std::vector<int64_t>>& inputs,
    const std::vector<int64_t>& panel_counts) {
  const auto program = parse_program(text);
  const std::vector<Shape> shapes = infer_shapes(*program, inputs, panel_counts);
  std::vector<std::vector<int64_t>> results;
  for (const int id : program->outputs)
    results.push_back(shapes[static_cast<size_t>(id)].logical());
  return results;
}

}  // namespace octavo

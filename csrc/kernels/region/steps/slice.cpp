// Every `step`-th row and column of an image, from `start` to `stop`.
#include <algorithm>

#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

struct Range {
  int64_t start, stop, step;  // stop -1: to the end
};
struct Ranges {
  Range h, w;
};

Range read_range(const Line& line, std::string_view text) {
  const auto [start, stop, step] = line.integers<3>(text, -1, kMaxNumber);
  if (start < 0 || step < 1) line.fail("start >= 0, stop >= -1, step >= 1", text);
  return {start, stop, step};
}

constexpr Key kKeys[] = {
    {"h", [](const Line& line, std::string_view text,
             Step* step) { step->make_own<Ranges>().h = read_range(line, text); }},
    {"w", [](const Line& line, std::string_view text, Step* step) {
       step->make_own<Ranges>().w = read_range(line, text);
     }}};

int64_t sliced(int64_t size, const Range& range) {
  const int64_t end = range.stop < 0 ? size : std::min(range.stop, size);
  return range.start >= end ? 0 : (end - range.start + range.step - 1) / range.step;
}

Shape shape(const ShapeStep& s) {
  const auto& ranges = s.step().own_keys<Ranges>();
  Shape shape = s.x();
  shape.h = sliced(shape.h, ranges.h);
  shape.w = sliced(shape.w, ranges.w);
  return shape;
}

void run(const RunStep& s) {
  const auto& [h, w] = s.step().own_keys<Ranges>();
  slice(s.x(), h.start, h.step, w.start, w.step, s.out());
}

}  // namespace

constinit const StepRow slice_step{.name = "slice",
                                   .keys = "x h w",
                                   .own_keys = kKeys,
                                   .reads = Layouts::kImages,
                                   .passes_params = true,
                                   .shape = shape,
                                   .run = run};

}  // namespace octavo

// A straightforward interpreter of region programs for tests: dense values, plain loops, the
// formulas of csrc/README.md one after another. Shares the parser and the shapes with the driver,
// no arithmetic and no layout. What a kind of step computes stands in steps/<kind>.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels.h"
#include "region/call.h"
#include "region/step_row.h"

namespace octavo {

/// Codes (or floats) of one value, dense [n, h, w, c]; rows are [1, 1, rows, c].
struct ReferenceValue {
  int64_t n = 1, h = 1, w = 1, c = 0;
  std::vector<int32_t> q;
  std::vector<float> f;
  std::vector<QuantParams> dynamic;

  size_t at(int64_t b, int64_t y, int64_t x, int64_t channel) const {
    return static_cast<size_t>(((b * h + y) * w + x) * c + channel);
  }
};

class RegionReference {
 public:
  /// panels: of any layout that unpack_panel knows.
  RegionReference(const Program& program, const std::vector<RegionInput>& inputs,
                  const std::vector<RegionPanel>& panels);

  /// Result o in the order of its logical sizes: images NCHW, rows as they are.
  std::vector<float> output(size_t o) const;

 private:
  friend class ReferenceStep;

  const Program& program_;
  const std::vector<RegionInput>& inputs_;
  const std::vector<RegionPanel>& panels_;
  std::vector<ReferenceValue> values_;
};

/// A step as its reference sees it.
class ReferenceStep {
 public:
  ReferenceStep(RegionReference* reference, size_t index) : all_(*reference), index_(index) {}

  const Step& step() const { return all_.program_.steps[index_]; }
  const ReferenceValue& value(int id) const { return all_.values_[static_cast<size_t>(id)]; }
  const ReferenceValue& x() const { return value(step().x[0]); }
  ReferenceValue& out() const { return all_.values_[index_]; }
  const QuantParams& params(int id) const {
    return all_.program_.steps[static_cast<size_t>(id)].params;
  }
  template <class T>
  const T* panel() const {
    return static_cast<const T*>(all_.panels_[static_cast<size_t>(step().panel)].data);
  }

  /// A key's value, read from the text: what follows "<key>=".
  std::string text(const std::string& key) const;
  std::vector<double> numbers(const std::string& key) const;

  /// The float input in the order of a dense value.
  std::vector<float> read_input() const;

  /// The value pixel by pixel: f(b, y, x, c) gives the code.
  template <class F>
  void each(F&& f) const {
    ReferenceValue& v = out();
    for (int64_t b = 0; b < v.n; ++b)
      for (int64_t y = 0; y < v.h; ++y)
        for (int64_t x = 0; x < v.w; ++x)
          for (int64_t c = 0; c < v.c; ++c) v.q[v.at(b, y, x, c)] = f(b, y, x, c);
  }

 private:
  RegionReference& all_;
  size_t index_;
};

int32_t rounded(float v, float lo, float hi);
int32_t quantized(float x, const QuantParams& p);

/// Makes a function the reference of a kind; a test asks that every kind has one.
class Reference {
 public:
  using Function = void (*)(const ReferenceStep& s);
  Reference(const std::string& kind, Function function);
  static Function of(const std::string& kind);  // nullptr where there is none
};

}  // namespace octavo

// The interpreter of reference.h: values one after another, each by the reference of its kind.
#include "region/reference.h"

#include <cmath>
#include <cstdlib>
#include <map>
#include <sstream>

namespace octavo {
namespace {

std::map<std::string, Reference::Function>& functions() {
  static std::map<std::string, Reference::Function> all;
  return all;
}

}  // namespace

Reference::Reference(const std::string& kind, Function function) { functions()[kind] = function; }

Reference::Function Reference::of(const std::string& kind) {
  const auto found = functions().find(kind);
  return found == functions().end() ? nullptr : found->second;
}

RegionReference::RegionReference(const Program& program, const std::vector<RegionInput>& inputs,
                                 const std::vector<RegionPanel>& panels)
    : program_(program), inputs_(inputs), panels_(panels) {
  std::vector<std::vector<int64_t>> sizes;
  for (const RegionInput& input : inputs) sizes.push_back(input.sizes);
  std::vector<int64_t> counts;
  for (const RegionPanel& panel : panels) counts.push_back(panel.count);
  const std::vector<Shape> shapes = infer_shapes(program, sizes, counts);
  for (size_t i = 0; i < program.steps.size(); ++i) {
    ReferenceValue v;
    v.n = shapes[i].n, v.h = shapes[i].h, v.w = shapes[i].w, v.c = shapes[i].c;
    v.q.assign(static_cast<size_t>(v.n * v.h * v.w * v.c), 0);
    if (program.steps[i].type == ValueType::kFloats) v.f.assign(v.q.size(), 0.0f);
    values_.push_back(std::move(v));
    Reference::of(program.steps[i].row->name)(ReferenceStep(this, i));
  }
}

std::vector<float> RegionReference::output(size_t o) const {
  const auto i = static_cast<size_t>(program_.outputs[o]);
  const Step& step = program_.steps[i];
  const ReferenceValue& v = values_[i];
  std::vector<float> result;
  const auto real = [&](size_t at) {
    return step.type == ValueType::kFloats
               ? v.f[at]
               : step.params.scale * static_cast<float>(v.q[at] - step.params.zero_point);
  };
  if (step.layout == ValueLayout::kRows) {
    for (size_t at = 0; at < v.q.size(); ++at) result.push_back(real(at));
    return result;
  }
  for (int64_t b = 0; b < v.n; ++b)
    for (int64_t c = 0; c < v.c; ++c)
      for (int64_t y = 0; y < v.h; ++y)
        for (int64_t x = 0; x < v.w; ++x) result.push_back(real(v.at(b, y, x, c)));
  return result;
}

std::string ReferenceStep::text(const std::string& key) const {
  std::istringstream lines(all_.program_.text);
  std::string line;
  for (size_t i = 0; i < index_ + 2; ++i) std::getline(lines, line);
  const size_t at = line.find(" " + key + "=") + key.size() + 2;
  return line.substr(at, line.find(' ', at) - at);
}

std::vector<double> ReferenceStep::numbers(const std::string& key) const {
  std::istringstream parts(text(key));
  std::vector<double> numbers;
  for (std::string part; std::getline(parts, part, ',');) {
    numbers.push_back(std::strtod(part.c_str(), nullptr));
  }
  return numbers;
}

std::vector<float> ReferenceStep::read_input() const {
  const RegionInput& in = all_.inputs_[static_cast<size_t>(step().input)];
  const ReferenceValue& v = out();
  std::vector<float> x;
  if (step().layout == ValueLayout::kRows) {
    std::vector<int64_t> index(in.sizes.size(), 0);
    for (size_t i = 0; i < v.q.size(); ++i) {
      int64_t at = 0;
      for (size_t d = 0; d < index.size(); ++d) at += index[d] * in.strides[d];
      x.push_back(in.data[at]);
      for (size_t d = index.size(); d-- > 0 && ++index[d] == in.sizes[d];) index[d] = 0;
    }
    return x;
  }
  const int64_t stride_h = in.sizes.size() == 4 ? in.strides[2] : 0;
  for (int64_t b = 0; b < v.n; ++b)
    for (int64_t y = 0; y < v.h; ++y)
      for (int64_t i = 0; i < v.w; ++i)
        for (int64_t c = 0; c < v.c; ++c)
          x.push_back(in.data[b * in.strides[0] + c * in.strides[1] + y * stride_h +
                              i * in.strides.back()]);
  return x;
}

int32_t rounded(float v, float lo, float hi) {
  return static_cast<int32_t>(std::nearbyintf(std::fmin(std::fmax(v, lo), hi)));
}

int32_t quantized(float x, const QuantParams& p) {
  const float r = 1.0f / p.scale;
  const auto z = static_cast<float>(p.zero_point);
  return rounded(x * r, -z, static_cast<float>(p.max_code) - z) + p.zero_point;
}

}  // namespace octavo

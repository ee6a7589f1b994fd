// A straightforward interpreter of region programs for tests: dense values, plain loops, the
// formulas of csrc/README.md one after another. Shares the parser and the shapes with the driver,
// no arithmetic and no layout.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "region/call.h"

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
                  const std::vector<RegionPanel>& panels)
      : program_(program), inputs_(inputs), panels_(panels) {
    std::vector<std::vector<int64_t>> sizes;
    for (const RegionInput& input : inputs) sizes.push_back(input.sizes);
    std::vector<int64_t> counts;
    for (const RegionPanel& panel : panels) counts.push_back(panel.count);
    shapes_ = infer_shapes(program, sizes, counts);
    for (size_t i = 0; i < program.steps.size(); ++i) {
      ReferenceValue v;
      v.n = shapes_[i].n, v.h = shapes_[i].h, v.w = shapes_[i].w, v.c = shapes_[i].c;
      v.q.assign(static_cast<size_t>(v.n * v.h * v.w * v.c), 0);
      if (program.steps[i].type == ValueType::kFloats) v.f.assign(v.q.size(), 0.0f);
      values_.push_back(std::move(v));
      run(i);
    }
  }

  /// Result o in the order of its logical sizes: images NCHW, rows as they are.
  std::vector<float> output(size_t o) const {
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

 private:
  const ReferenceValue& value(int id) const { return values_[static_cast<size_t>(id)]; }
  const QuantParams& params(int id) const { return program_.steps[static_cast<size_t>(id)].params; }

  static int32_t rounded(float v, float lo, float hi) {
    return static_cast<int32_t>(std::nearbyintf(std::fmin(std::fmax(v, lo), hi)));
  }

  static int32_t quantized(float x, const QuantParams& p) {
    const float r = 1.0f / p.scale;
    const auto z = static_cast<float>(p.zero_point);
    return rounded(x * r, -z, static_cast<float>(p.max_code) - z) + p.zero_point;
  }

  /// The float input in the order of a dense value.
  std::vector<float> read_input(const Step& step, const ReferenceValue& v) const {
    const RegionInput& in = inputs_[static_cast<size_t>(step.input)];
    std::vector<float> x;
    if (step.layout == ValueLayout::kRows) {
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

  void run_product(size_t i) {
    const Step& s = program_.steps[i];
    ReferenceValue& out = values_[i];
    const ReferenceValue& in = value(s.x[0]);
    const void* panel = panels_[static_cast<size_t>(s.panel)].data;
    const auto& h = *static_cast<const PanelHeader*>(panel);
    const auto* bytes = static_cast<const char*>(panel);
    const auto* weight_scale = reinterpret_cast<const float*>(bytes + h.scale_offset);
    const auto* bias = reinterpret_cast<const float*>(bytes + h.bias_offset);
    const int64_t group_in = h.in_channels / h.groups, group_out = h.out_channels / h.groups;
    std::vector<int8_t> codes(
        static_cast<size_t>(h.out_channels * group_in * h.kernel_h * h.kernel_w));
    unpack_panel(panel, codes.data());
    const ConvGeometry& g = s.geometry;
    for (int64_t b = 0; b < out.n; ++b)
      for (int64_t y = 0; y < out.h; ++y)
        for (int64_t x = 0; x < out.w; ++x)
          for (int64_t o = 0; o < out.c; ++o) {
            const QuantParams p = s.kind == StepKind::kConvDynamic
                                      ? in.dynamic[static_cast<size_t>(b)]
                                      : params(s.x[0]);
            int64_t sum = 0;
            for (int64_t c = 0; c < group_in; ++c)
              for (int64_t u = 0; u < g.kernel_h; ++u)
                for (int64_t t = 0; t < g.kernel_w; ++t) {
                  const int64_t row = y * g.stride_h - g.pad_top + u * g.dilation_h;
                  const int64_t column = x * g.stride_w - g.pad_left + t * g.dilation_w;
                  if (row < 0 || row >= in.h || column < 0 || column >= in.w) continue;
                  const int64_t source = o / group_out * group_in + c;
                  sum += (in.q[in.at(b, row, column, source)] - p.zero_point) *
                         int64_t{codes[static_cast<size_t>(
                             ((o * group_in + c) * g.kernel_h + u) * g.kernel_w + t)]};
                }
            const auto acc = static_cast<float>(static_cast<int32_t>(sum));
            const size_t at = out.at(b, y, x, o);
            if (s.kind == StepKind::kConvDynamic) {
              out.f[at] = std::fmaf(acc, p.scale * weight_scale[o], bias[o]);
              continue;
            }
            if (s.type == ValueType::kFloats) {
              const auto m = static_cast<float>(static_cast<double>(p.scale) * weight_scale[o]);
              out.f[at] = std::fmin(std::fmax(std::fmaf(acc, m, bias[o]), s.lo), s.hi);
              continue;
            }
            const double s_y = s.params.scale;
            const auto m = static_cast<float>(static_cast<double>(p.scale) * weight_scale[o] / s_y);
            double a = static_cast<double>(bias[o]) / s_y + s.params.zero_point;
            if (s.residual >= 0) {
              const QuantParams& r = params(s.residual);
              a -= r.zero_point * static_cast<double>(r.scale) / s_y;
            }
            float v = std::fmaf(acc, m, static_cast<float>(a));
            if (s.residual >= 0) {
              v = std::fmaf(static_cast<float>(value(s.residual).q[at]),
                            static_cast<float>(params(s.residual).scale / s_y), v);
            }
            out.q[at] = rounded(v, s.lo, s.hi);
          }
  }

  void run_pool(size_t i) {
    const Step& s = program_.steps[i];
    ReferenceValue& out = values_[i];
    const ReferenceValue& in = value(s.x[0]);
    const ConvGeometry& g = s.geometry;
    const bool adaptive =
        s.kind == StepKind::kAdaptiveAvgPool || s.kind == StepKind::kAdaptiveMaxPool;
    const bool average = s.kind == StepKind::kAvgPool || s.kind == StepKind::kAdaptiveAvgPool;
    const int32_t z = params(s.x[0]).zero_point;
    const auto m = static_cast<float>(params(s.x[0]).scale / static_cast<double>(s.params.scale));
    for (int64_t b = 0; b < out.n; ++b)
      for (int64_t y = 0; y < out.h; ++y)
        for (int64_t x = 0; x < out.w; ++x)
          for (int64_t c = 0; c < out.c; ++c) {
            int64_t sum = 0, inside = 0, most = 0, window = 0;
            const auto tap = [&](int64_t row, int64_t column) {
              if (row < in.h + s.pad_bottom && column < in.w + s.pad_right) ++window;
              if (row < 0 || row >= in.h || column < 0 || column >= in.w) return;
              const int64_t q = in.q[in.at(b, row, column, c)];
              sum += q, ++inside, most = std::max(most, q);
            };
            if (adaptive) {
              for (int64_t r = y * in.h / out.h; r < ((y + 1) * in.h + out.h - 1) / out.h; ++r)
                for (int64_t t = x * in.w / out.w; t < ((x + 1) * in.w + out.w - 1) / out.w; ++t)
                  tap(r, t);
            } else {
              for (int64_t u = 0; u < g.kernel_h; ++u)
                for (int64_t t = 0; t < g.kernel_w; ++t)
                  tap(y * g.stride_h - g.pad_top + u * g.dilation_h,
                      x * g.stride_w - g.pad_left + t * g.dilation_w);
            }
            const size_t at = out.at(b, y, x, c);
            if (!average) {
              out.q[at] = static_cast<int32_t>(most);
              continue;
            }
            const int64_t divisor = s.divisor > 0 ? s.divisor : s.include_pad ? window : inside;
            out.q[at] = rounded(
                std::fmaf(static_cast<float>(sum - z * inside), m / static_cast<float>(divisor),
                          static_cast<float>(s.params.zero_point)),
                0.0f, static_cast<float>(s.params.max_code));
          }
  }

  /// Value i pixel by pixel: f(b, y, x, c) gives the code.
  template <class F>
  void each(size_t i, F&& f) {
    ReferenceValue& v = values_[i];
    for (int64_t b = 0; b < v.n; ++b)
      for (int64_t y = 0; y < v.h; ++y)
        for (int64_t x = 0; x < v.w; ++x)
          for (int64_t c = 0; c < v.c; ++c) v.q[v.at(b, y, x, c)] = f(b, y, x, c);
  }

  void run(size_t i) {
    const Step& s = program_.steps[i];
    ReferenceValue& out = values_[i];
    const ReferenceValue* in = s.x.empty() ? nullptr : &value(s.x[0]);
    const void* panel = s.panel < 0 ? nullptr : panels_[static_cast<size_t>(s.panel)].data;
    const double s_out = s.params.scale;
    const auto z_out = static_cast<float>(s.params.zero_point);
    switch (s.kind) {
      case StepKind::kQuantize: {
        const std::vector<float> x = read_input(s, out);
        for (size_t at = 0; at < x.size(); ++at) out.q[at] = quantized(x[at], s.params);
        break;
      }
      case StepKind::kQuantizeDynamic: {
        const std::vector<float> x = read_input(s, out);
        const size_t each_image = x.size() / static_cast<size_t>(std::max<int64_t>(out.n, 1));
        for (int64_t b = 0; b < out.n; ++b) {
          const auto first = x.begin() + static_cast<int64_t>(each_image) * b;
          const auto [low, high] =
              std::minmax_element(first, first + static_cast<int64_t>(each_image));
          out.dynamic.push_back(
              params_of_range(std::min(*low, 0.0f), std::max(*high, 0.0f), s.params.max_code));
          for (size_t k = 0; k < each_image; ++k) {
            const size_t at = static_cast<size_t>(b) * each_image + k;
            out.q[at] = quantized(x[at], out.dynamic.back());
          }
        }
        break;
      }
      case StepKind::kConv:
      case StepKind::kLinear:
      case StepKind::kConvF32:
      case StepKind::kLinearF32:
      case StepKind::kConvDynamic:
        run_product(i);
        break;
      case StepKind::kAdd: {
        const QuantParams &a = params(s.x[0]), &b = params(s.y);
        const double ma = a.scale / s_out, mb = b.scale / s_out;
        const auto offset =
            static_cast<float>(s.params.zero_point - a.zero_point * ma - b.zero_point * mb);
        for (size_t at = 0; at < out.q.size(); ++at) {
          const float inner =
              std::fmaf(static_cast<float>(value(s.y).q[at]), static_cast<float>(mb), offset);
          out.q[at] = rounded(
              std::fmaf(static_cast<float>(in->q[at]), static_cast<float>(ma), inner), s.lo, s.hi);
        }
        break;
      }
      case StepKind::kMul: {
        const QuantParams &a = params(s.x[0]), &b = params(s.y);
        const auto m = static_cast<float>(static_cast<double>(a.scale) * b.scale / s_out);
        const ReferenceValue& gate = value(s.y);
        each(i, [&](int64_t n, int64_t y, int64_t x, int64_t c) {
          const int32_t g = gate.q[gate.at(n, gate.h == 1 ? 0 : y, gate.w == 1 ? 0 : x, c)];
          const int32_t product = (in->q[in->at(n, y, x, c)] - a.zero_point) * (g - b.zero_point);
          return rounded(std::fmaf(static_cast<float>(product), m, z_out), s.lo, s.hi);
        });
        break;
      }
      case StepKind::kConcat: {
        int64_t first = 0;
        for (const int id : s.x) {
          const ReferenceValue& part = value(id);
          const QuantParams& p = params(id);
          const auto m = static_cast<float>(p.scale / s_out);
          const bool equal = p.scale == s.params.scale && p.zero_point == s.params.zero_point;
          for (int64_t n = 0; n < out.n; ++n)
            for (int64_t y = 0; y < out.h; ++y)
              for (int64_t x = 0; x < out.w; ++x)
                for (int64_t c = 0; c < part.c; ++c) {
                  const int32_t q = part.q[part.at(n, y, x, c)];
                  const float v = std::fmaf(static_cast<float>(q - p.zero_point), m, z_out);
                  out.q[out.at(n, y, x, first + c)] =
                      equal && p.max_code <= s.params.max_code
                          ? q
                          : rounded(v, 0.0f, static_cast<float>(s.params.max_code));
                }
          first += part.c;
        }
        break;
      }
      case StepKind::kAffine: {
        const auto* real = static_cast<const float*>(panel);
        const QuantParams& p = params(s.x[0]);
        each(i, [&](int64_t n, int64_t y, int64_t x, int64_t c) {
          const double mult = real[c], shift = real[out.c + c];
          const auto m = static_cast<float>(mult * p.scale / s_out);
          const auto a = static_cast<float>((shift - mult * p.scale * p.zero_point) / s_out +
                                            s.params.zero_point);
          return rounded(std::fmaf(static_cast<float>(in->q[in->at(n, y, x, c)]), m, a), s.lo,
                         s.hi);
        });
        break;
      }
      case StepKind::kTable:
      case StepKind::kChannelTable: {
        const auto* table = static_cast<const uint8_t*>(panel);
        each(i, [&](int64_t n, int64_t y, int64_t x, int64_t c) {
          return table[(s.kind == StepKind::kTable ? 0 : 256 * c) + in->q[in->at(n, y, x, c)]];
        });
        break;
      }
      case StepKind::kMaxPool:
      case StepKind::kAvgPool:
      case StepKind::kAdaptiveAvgPool:
      case StepKind::kAdaptiveMaxPool:
        run_pool(i);
        break;
      case StepKind::kGatherChannels: {
        const auto* index = static_cast<const int32_t*>(panel);
        each(i, [&](int64_t n, int64_t y, int64_t x, int64_t c) {
          return index[c] < 0 ? s.params.zero_point : in->q[in->at(n, y, x, index[c])];
        });
        break;
      }
      case StepKind::kSlice:
        each(i, [&](int64_t n, int64_t y, int64_t x, int64_t c) {
          return in->q[in->at(n, s.rows[0] + y * s.rows[2], s.columns[0] + x * s.columns[2], c)];
        });
        break;
      case StepKind::kUpsampleNearest: {
        const auto source = [](int64_t at, int64_t from, int64_t to, int64_t size, double scale) {
          const float ratio = size > 0 ? static_cast<float>(from) / static_cast<float>(to)
                                       : static_cast<float>(1.0 / scale);
          return std::min(from - 1, static_cast<int64_t>(static_cast<float>(at) * ratio));
        };
        each(i, [&](int64_t n, int64_t y, int64_t x, int64_t c) {
          return in->q[in->at(n, source(y, in->h, out.h, s.size[0], s.scales[0]),
                              source(x, in->w, out.w, s.size[1], s.scales[1]), c)];
        });
        break;
      }
      case StepKind::kPad:
        each(i, [&](int64_t n, int64_t y, int64_t x, int64_t c) {
          const int64_t row = padded(y - s.geometry.pad_top, in->h, s.mode);
          const int64_t column = padded(x - s.geometry.pad_left, in->w, s.mode);
          return row < 0 || column < 0 ? quantized(s.value, s.params)
                                       : in->q[in->at(n, row, column, c)];
        });
        break;
      case StepKind::kFlatten:
        for (int64_t n = 0; n < in->n; ++n)
          for (int64_t c = 0; c < in->c; ++c)
            for (int64_t y = 0; y < in->h; ++y)
              for (int64_t x = 0; x < in->w; ++x)
                out.q[out.at(0, 0, n, (c * in->h + y) * in->w + x)] = in->q[in->at(n, y, x, c)];
        break;
      case StepKind::kUnflatten:
        each(i, [&](int64_t n, int64_t y, int64_t x, int64_t c) {
          return in->q[in->at(0, 0, n, (c * out.h + y) * out.w + x)];
        });
        break;
      case StepKind::kToRows:
      case StepKind::kToImage:
        out.q = in->q;
        break;
    }
  }

  static int64_t padded(int64_t i, int64_t size, PadMode mode) {
    if (i >= 0 && i < size) return i;
    if (mode == PadMode::kConstant) return -1;
    if (mode == PadMode::kReplicate) return i < 0 ? 0 : size - 1;
    if (mode == PadMode::kCircular) return (i + size) % size;
    return i < 0 ? -i : 2 * (size - 1) - i;
  }

  const Program& program_;
  const std::vector<RegionInput>& inputs_;
  const std::vector<RegionPanel>& panels_;
  std::vector<Shape> shapes_;
  std::vector<ReferenceValue> values_;
};

}  // namespace octavo

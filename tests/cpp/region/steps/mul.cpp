// Reference of mul.
#include <cmath>

#include "region/reference.h"

namespace octavo {
namespace {

const Reference kMul("mul", [](const ReferenceStep& s) {
  const Step& step = s.step();
  const QuantParams &a = s.params(step.x[0]), &b = s.params(step.y);
  const double s_out = step.params.scale;
  const auto m = static_cast<float>(static_cast<double>(a.scale) * b.scale / s_out);
  const ReferenceValue& in = s.x();
  const ReferenceValue& gate = s.value(step.y);
  s.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    const int32_t g = gate.q[gate.at(n, gate.h == 1 ? 0 : y, gate.w == 1 ? 0 : x, c)];
    const int32_t product = (in.q[in.at(n, y, x, c)] - a.zero_point) * (g - b.zero_point);
    const auto z = static_cast<float>(step.params.zero_point);
    return rounded(std::fmaf(static_cast<float>(product), m, z), step.lo, step.hi);
  });
});

}  // namespace
}  // namespace octavo

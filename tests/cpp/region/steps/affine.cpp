// Reference of affine.
#include <cmath>

#include "region/reference.h"

namespace octavo {
namespace {

const Reference kAffine("affine", [](const ReferenceStep& s) {
  const Step& step = s.step();
  const auto* real = s.panel<float>();
  const QuantParams& p = s.params(step.x[0]);
  const double s_out = step.params.scale;
  const ReferenceValue& in = s.x();
  s.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    const double mult = real[c], shift = real[s.out().c + c];
    const auto m = static_cast<float>(mult * p.scale / s_out);
    const auto a = static_cast<float>((shift - mult * p.scale * p.zero_point) / s_out +
                                      step.params.zero_point);
    return rounded(std::fmaf(static_cast<float>(in.q[in.at(n, y, x, c)]), m, a), step.lo, step.hi);
  });
});

}  // namespace
}  // namespace octavo

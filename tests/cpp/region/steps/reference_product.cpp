// References of products to codes and to floats.
#include "region/steps/reference_product.h"

#include <cmath>

namespace octavo {

void product_to_codes(const ReferenceStep& s) {
  const Step& step = s.step();
  const ReferenceWeight weight = reference_weight(s);
  const QuantParams& p = s.params(step.x[0]);
  const double s_y = step.params.scale;
  each_sum(
      s, weight, [&](int64_t) { return p; },
      [&](int64_t, size_t at, int64_t o, float acc) {
        const auto m = static_cast<float>(static_cast<double>(p.scale) * weight.scale[o] / s_y);
        double a = static_cast<double>(weight.bias[o]) / s_y + step.params.zero_point;
        if (step.residual >= 0) {
          const QuantParams& r = s.params(step.residual);
          a -= r.zero_point * static_cast<double>(r.scale) / s_y;
        }
        float v = std::fmaf(acc, m, static_cast<float>(a));
        if (step.residual >= 0) {
          v = std::fmaf(static_cast<float>(s.value(step.residual).q[at]),
                        static_cast<float>(s.params(step.residual).scale / s_y), v);
        }
        s.out().q[at] = rounded(v, step.lo, step.hi);
      });
}

void product_to_floats(const ReferenceStep& s) {
  const ReferenceWeight weight = reference_weight(s);
  const QuantParams& p = s.params(s.step().x[0]);
  each_sum(
      s, weight, [&](int64_t) { return p; },
      [&](int64_t, size_t at, int64_t o, float acc) {
        const auto m = static_cast<float>(static_cast<double>(p.scale) * weight.scale[o]);
        const float v = std::fmaf(acc, m, weight.bias[o]);
        s.out().f[at] = std::fmin(std::fmax(v, s.step().lo), s.step().hi);
      });
}

}  // namespace octavo

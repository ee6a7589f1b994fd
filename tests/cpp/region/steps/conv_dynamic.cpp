// Reference of conv_dynamic.
#include <cmath>

#include "region/steps/reference_product.h"

namespace octavo {
namespace {

const Reference kConvDynamic("conv_dynamic", [](const ReferenceStep& s) {
  const ReferenceWeight weight = reference_weight(s);
  const std::vector<QuantParams>& params = s.x().dynamic;
  const auto of = [&](int64_t b) { return params[static_cast<size_t>(b)]; };
  each_sum(s, weight, of, [&](int64_t b, size_t at, int64_t o, float acc) {
    s.out().f[at] = std::fmaf(acc, of(b).scale * weight.scale[o], weight.bias[o]);
  });
});

}  // namespace
}  // namespace octavo

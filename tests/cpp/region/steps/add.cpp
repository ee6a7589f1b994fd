// Reference of add.
#include <cmath>

#include "region/reference.h"

namespace octavo {
namespace {

const Reference kAdd("add", [](const ReferenceStep& s) {
  const Step& step = s.step();
  const QuantParams &a = s.params(step.x[0]), &b = s.params(step.y);
  const double s_out = step.params.scale;
  const double ma = a.scale / s_out, mb = b.scale / s_out;
  const auto offset =
      static_cast<float>(step.params.zero_point - a.zero_point * ma - b.zero_point * mb);
  for (size_t at = 0; at < s.out().q.size(); ++at) {
    const float inner =
        std::fmaf(static_cast<float>(s.value(step.y).q[at]), static_cast<float>(mb), offset);
    const float v = std::fmaf(static_cast<float>(s.x().q[at]), static_cast<float>(ma), inner);
    s.out().q[at] = rounded(v, step.lo, step.hi);
  }
});

}  // namespace
}  // namespace octavo

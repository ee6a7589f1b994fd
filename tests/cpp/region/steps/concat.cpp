// Reference of concat.
#include <cmath>

#include "region/reference.h"

namespace octavo {
namespace {

const Reference kConcat("concat", [](const ReferenceStep& s) {
  const QuantParams& whole = s.step().params;
  ReferenceValue& out = s.out();
  int64_t first = 0;
  for (const int id : s.step().x) {
    const ReferenceValue& part = s.value(id);
    const QuantParams& p = s.params(id);
    const auto m = static_cast<float>(p.scale / static_cast<double>(whole.scale));
    const bool equal = p.scale == whole.scale && p.zero_point == whole.zero_point;
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t y = 0; y < out.h; ++y)
        for (int64_t x = 0; x < out.w; ++x)
          for (int64_t c = 0; c < part.c; ++c) {
            const int32_t q = part.q[part.at(n, y, x, c)];
            const float v = std::fmaf(static_cast<float>(q - p.zero_point), m,
                                      static_cast<float>(whole.zero_point));
            out.q[out.at(n, y, x, first + c)] =
                equal && p.max_code <= whole.max_code
                    ? q
                    : rounded(v, 0.0f, static_cast<float>(whole.max_code));
          }
    first += part.c;
  }
});

}  // namespace
}  // namespace octavo

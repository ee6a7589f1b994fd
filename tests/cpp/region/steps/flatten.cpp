// Reference of flatten.
#include "region/reference.h"

namespace octavo {
namespace {

const Reference kFlatten("flatten", [](const ReferenceStep& s) {
  const ReferenceValue& in = s.x();
  ReferenceValue& out = s.out();
  for (int64_t n = 0; n < in.n; ++n)
    for (int64_t c = 0; c < in.c; ++c)
      for (int64_t y = 0; y < in.h; ++y)
        for (int64_t x = 0; x < in.w; ++x)
          out.q[out.at(0, 0, n, (c * in.h + y) * in.w + x)] = in.q[in.at(n, y, x, c)];
});

}  // namespace
}  // namespace octavo

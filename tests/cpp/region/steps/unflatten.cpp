// Reference of unflatten.
#include "region/reference.h"

namespace octavo {
namespace {

const Reference kUnflatten("unflatten", [](const ReferenceStep& s) {
  const ReferenceValue& out = s.out();
  s.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    return s.x().q[s.x().at(0, 0, n, (c * out.h + y) * out.w + x)];
  });
});

}  // namespace
}  // namespace octavo

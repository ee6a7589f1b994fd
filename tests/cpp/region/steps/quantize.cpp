// Reference of quantize.
#include "region/reference.h"

namespace octavo {
namespace {

const Reference kQuantize("quantize", [](const ReferenceStep& s) {
  const std::vector<float> x = s.read_input();
  for (size_t at = 0; at < x.size(); ++at) s.out().q[at] = quantized(x[at], s.step().params);
});

}  // namespace
}  // namespace octavo

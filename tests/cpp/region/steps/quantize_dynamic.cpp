// Reference of quantize_dynamic.
#include <algorithm>

#include "region/reference.h"

namespace octavo {
namespace {

const Reference kQuantizeDynamic("quantize_dynamic", [](const ReferenceStep& s) {
  ReferenceValue& out = s.out();
  const std::vector<float> x = s.read_input();
  const size_t each_image = x.size() / static_cast<size_t>(std::max<int64_t>(out.n, 1));
  for (int64_t b = 0; b < out.n; ++b) {
    const auto first = x.begin() + static_cast<int64_t>(each_image) * b;
    const auto [low, high] = std::minmax_element(first, first + static_cast<int64_t>(each_image));
    out.dynamic.push_back(
        params_of_range(std::min(*low, 0.0f), std::max(*high, 0.0f), s.step().params.max_code));
    for (size_t k = 0; k < each_image; ++k) {
      const size_t at = static_cast<size_t>(b) * each_image + k;
      out.q[at] = quantized(x[at], out.dynamic.back());
    }
  }
});

}  // namespace
}  // namespace octavo

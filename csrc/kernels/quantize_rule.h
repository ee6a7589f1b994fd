// How values become codes, from the parameters of a tensor or of a row. Included by quantize.cpp,
// linear_dynamic.cpp and lowbit.cpp; used inside parallel ranges, where the rounding mode is the
// default one.
#pragma once

#include "element_table.h"
#include "kernels.h"

namespace octavo {

inline QuantizeRule rule_of(const QuantParams& p) {
  return {1.0f / p.scale, static_cast<float>(-p.zero_point),
          static_cast<float>(p.max_code - p.zero_point), p.zero_point};
}

/// Given parameters, or those of the row's own range in 8 bits.
inline QuantParams row_params(const ElementTable& table, const float* row, int64_t k,
                              const QuantParams* fixed) {
  if (fixed != nullptr) return *fixed;
  float min = 0.0f, max = 0.0f;  // every range holds 0
  table.range_f32(row, k, &min, &max);
  return params_of_range(min, max, 255);
}

}  // namespace octavo

// The list of kinds of step: one line each, as csrc/README.md has them. Included by steps.cpp and
// by steps/<kind>.cpp, which defines the row.
#pragma once

#include "region/step_row.h"

// clang-format off
#define OCTAVO_REGION_STEPS(kind) \
  kind(quantize)                  \
  kind(quantize_dynamic)          \
  kind(conv)                      \
  kind(linear)                    \
  kind(conv_f32)                  \
  kind(linear_f32)                \
  kind(conv_dynamic)              \
  kind(add)                       \
  kind(mul)                       \
  kind(concat)                    \
  kind(affine)                    \
  kind(table)                     \
  kind(channel_table)             \
  kind(max_pool)                  \
  kind(avg_pool)                  \
  kind(adaptive_avg_pool)         \
  kind(adaptive_max_pool)         \
  kind(gather_channels)           \
  kind(slice)                     \
  kind(upsample_nearest)          \
  kind(pixel_shuffle)             \
  kind(pad)                       \
  kind(flatten)                   \
  kind(unflatten)                 \
  kind(to_rows)                   \
  kind(to_image)
// clang-format on

namespace octavo {

#define OCTAVO_DECLARE_STEP(kind) extern const StepRow kind##_step;
OCTAVO_REGION_STEPS(OCTAVO_DECLARE_STEP)
#undef OCTAVO_DECLARE_STEP

}  // namespace octavo

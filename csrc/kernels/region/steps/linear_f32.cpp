// A linear layer to floats, which are written straight into results.
#include "region/steps.h"
#include "region/steps/product.h"

namespace octavo {
constinit const StepRow linear_f32_step{.name = "linear_f32",
                                        .keys = "x panel channels lo hi",
                                        .reads = Layouts::kRows,
                                        .defines_type = ValueType::kFloats,
                                        .shape = linear_shape,
                                        .check_panel = check_weight,
                                        .constant_channels = weight_channels,
                                        .constants_bytes = product_constants_bytes,
                                        .write_constants = write_product_constants,
                                        .write = write_product};

}  // namespace octavo

// A linear layer to codes, perhaps with a residual added before the clamp.
#include "region/steps.h"
#include "region/steps/product.h"

namespace octavo {
constinit const StepRow linear_step{.name = "linear",
                                    .keys = "x panel channels s z max lo hi [r]",
                                    .reads = Layouts::kRows,
                                    .shape = linear_shape,
                                    .derive = derive_residual,
                                    .check_panel = check_weight,
                                    .constant_channels = weight_channels,
                                    .constants_bytes = product_constants_bytes,
                                    .write_constants = write_product_constants,
                                    .run = run_product};

}  // namespace octavo

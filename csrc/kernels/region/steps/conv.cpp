// A convolution to codes, perhaps with a residual added before the clamp.
#include "region/steps.h"
#include "region/steps/convolution.h"

namespace octavo {
constinit const StepRow conv_step{
    .name = "conv",
    .keys = "x panel channels kernel stride pad dilation s z max lo hi [r]",
    .reads = Layouts::kImages,
    .shape = conv_shape,
    .derive = derive_residual,
    .halo = conv_halo,
    .wants_own_pixels = has_wide_kernel,
    .check_panel = check_weight,
    .constant_channels = weight_channels,
    .constants_bytes = product_constants_bytes,
    .write_constants = write_product_constants,
    .run = run_product};

}  // namespace octavo

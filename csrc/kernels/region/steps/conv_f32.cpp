// A convolution to floats, which are written straight into results.
#include "region/steps.h"
#include "region/steps/convolution.h"

namespace octavo {
constinit const StepRow conv_f32_step{.name = "conv_f32",
                                      .keys = "x panel channels kernel stride pad dilation lo hi",
                                      .reads = Layouts::kImages,
                                      .defines_type = ValueType::kFloats,
                                      .shape = conv_shape,
                                      .halo = conv_halo,
                                      .wants_own_pixels = has_wide_kernel,
                                      .check_panel = check_weight,
                                      .constant_channels = weight_channels,
                                      .constants_bytes = product_constants_bytes,
                                      .write_constants = write_product_constants,
                                      .write = write_product};

}  // namespace octavo

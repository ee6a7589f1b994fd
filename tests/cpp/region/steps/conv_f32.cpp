// Reference of conv_f32.
#include "region/steps/reference_product.h"

namespace octavo {
namespace {

const Reference kConvF32("conv_f32", product_to_floats);

}  // namespace
}  // namespace octavo

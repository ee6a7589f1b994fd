// Reference of linear_f32.
#include "region/steps/reference_product.h"

namespace octavo {
namespace {

const Reference kLinearF32("linear_f32", product_to_floats);

}  // namespace
}  // namespace octavo

// Reference of linear.
#include "region/steps/reference_product.h"

namespace octavo {
namespace {

const Reference kLinear("linear", product_to_codes);

}  // namespace
}  // namespace octavo

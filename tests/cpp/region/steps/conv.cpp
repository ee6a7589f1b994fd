// Reference of conv.
#include "region/steps/reference_product.h"

namespace octavo {
namespace {

const Reference kConv("conv", product_to_codes);

}  // namespace
}  // namespace octavo

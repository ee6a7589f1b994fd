// Reference of to_image.
#include "region/reference.h"

namespace octavo {
namespace {

const Reference kToImage("to_image", [](const ReferenceStep& s) { s.out().q = s.x().q; });

}  // namespace
}  // namespace octavo

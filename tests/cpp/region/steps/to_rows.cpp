// Reference of to_rows.
#include "region/reference.h"

namespace octavo {
namespace {

const Reference kToRows("to_rows", [](const ReferenceStep& s) { s.out().q = s.x().q; });

}  // namespace
}  // namespace octavo

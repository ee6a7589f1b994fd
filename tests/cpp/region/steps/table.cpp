// Reference of table.
#include "region/reference.h"

namespace octavo {
namespace {

const Reference kTable("table", [](const ReferenceStep& s) {
  for (size_t at = 0; at < s.out().q.size(); ++at) s.out().q[at] = s.panel<uint8_t>()[s.x().q[at]];
});

}  // namespace
}  // namespace octavo

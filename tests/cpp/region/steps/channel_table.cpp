// Reference of channel_table.
#include "region/reference.h"

namespace octavo {
namespace {

const Reference kChannelTable("channel_table", [](const ReferenceStep& s) {
  s.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    return s.panel<uint8_t>()[256 * c + s.x().q[s.x().at(n, y, x, c)]];
  });
});

}  // namespace
}  // namespace octavo

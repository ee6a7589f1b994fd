// Values joined along channels. A part that has the parameters of the result is written into the
// result by its producer if nothing else reads it; a part with other parameters goes through a
// table.
#include <cmath>

#include "kernels.h"
#include "region/steps.h"

namespace octavo {
namespace {

constexpr Key kKeys[] = {{"x", [](const Line& line, std::string_view text, Step* step) {
                            do {
                              step->x.push_back(line.value(take(&text, ',')));
                            } while (text.data() != nullptr);
                          }}};

bool keeps_codes(const QuantParams& part, const QuantParams& whole) {
  return part.scale == whole.scale && part.zero_point == whole.zero_point &&
         part.max_code <= whole.max_code;
}

Shape shape(const ShapeStep& s) {
  Shape shape = s.x();
  Shape wanted = shape;
  shape.c = 0;
  for (const int id : s.step().x) {
    const Shape& part = s.value(id);
    wanted.c = part.c;
    if (part != wanted) s.fail("values that differ in channels only", text_of(part));
    shape.c += part.c;
  }
  return shape;
}

void place(Placement* p, int i) {
  const Step& step = p->step(i);
  int64_t channel = 0;
  for (const int x : step.x) {
    if (keeps_codes(p->step(x).params, step.params)) p->put_inside(x, i, channel);
    channel += p->shape(x).c;
  }
}

/// A table for each part, used or not.
int64_t constants_bytes(const Step& step, int64_t) {
  return 256 * static_cast<int64_t>(step.x.size());
}

void write_constants(const ConstantsStep& s, int64_t, char* at) {
  const QuantParams& out = s.step().params;
  auto* table = reinterpret_cast<uint8_t*>(at);
  for (const int id : s.step().x) {
    const QuantParams& in = s.params(id);
    const float m = s.rounded_factor(static_cast<double>(in.scale) / out.scale);
    for (int q = 0; q < 256; ++q) {
      const float v =
          std::fmaf(static_cast<float>(q - in.zero_point), m, static_cast<float>(out.zero_point));
      const float clamped = std::fmin(std::fmax(v, 0.0f), static_cast<float>(out.max_code));
      *table++ = static_cast<uint8_t>(std::nearbyintf(clamped));
    }
  }
}

void run(const RunStep& s) {
  const Step& step = s.step();
  const auto* table = reinterpret_cast<const uint8_t*>(s.constants());
  Image part = s.out();
  for (const int id : step.x) {
    const Image x = s.value(id);
    part.c = x.c;
    if (!s.is_inside(id)) {
      if (keeps_codes(s.params(id), step.params)) {
        copy(x, part);
      } else {
        apply_table(x, table, false, part);
      }
    }
    part.data += x.c;
    table += 256;
  }
}

}  // namespace

constinit const StepRow concat_step{.name = "concat",
                                    .keys = "x s z max",
                                    .own_keys = kKeys,
                                    .shape = shape,
                                    .place = place,
                                    .constants_bytes = constants_bytes,
                                    .write_constants = write_constants,
                                    .run = run};

}  // namespace octavo

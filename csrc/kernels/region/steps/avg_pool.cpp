// The average of each window, with torch's divisors.
#include "kernels.h"
#include "region/steps.h"
#include "region/steps/pool.h"
#include "region/steps/window.h"

namespace octavo {
namespace {

struct Divisor {
  bool include_pad = false;
  int64_t fixed = 0;  // 0: none
};

constexpr Key kKeys[] = {{"include_pad",
                          [](const Line& line, std::string_view text, Step* step) {
                            step->make_own<Divisor>().include_pad = line.integer(text, 0, 1) != 0;
                          }},
                         {"divisor", [](const Line& line, std::string_view text, Step* step) {
                            step->make_own<Divisor>().fixed = line.integer(text, 0, kMaxNumber);
                          }}};

void run(const RunStep& s) {
  const Step& step = s.step();
  const auto& divisor = step.own_keys<Divisor>();
  const AveragePool pool{step.geometry, step.pad_bottom, step.pad_right, divisor.include_pad,
                         divisor.fixed};
  average_pool(s.x(), pool, s.x_params().zero_point, s.derived().m, s.derived().offset, 0.0f,
               static_cast<float>(step.params.max_code), s.out());
}

}  // namespace

constinit const StepRow avg_pool_step{
    .name = "avg_pool",
    .keys = "x kernel stride pad ceil include_pad divisor s z max",
    .own_keys = kKeys,
    .reads = Layouts::kImages,
    .check = check_pool_padding,
    .shape = windowed,
    .derive = derive_average,
    .run = run};

}  // namespace octavo

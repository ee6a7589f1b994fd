// The average of each of a given number of windows.
#include "kernels.h"
#include "region/steps.h"
#include "region/steps/pool.h"

namespace octavo {
namespace {

void run(const RunStep& s) {
  adaptive_average_pool(s.x(), s.x_params().zero_point, s.derived().m, s.derived().offset, 0.0f,
                        static_cast<float>(s.step().params.max_code), s.out());
}

}  // namespace

constinit const StepRow adaptive_avg_pool_step{.name = "adaptive_avg_pool",
                                               .keys = "x size s z max",
                                               .reads = Layouts::kImages,
                                               .shape = adaptive_shape,
                                               .derive = derive_average,
                                               .run = run};

}  // namespace octavo

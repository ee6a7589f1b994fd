// The largest code of each of a given number of windows.
#include "kernels.h"
#include "region/steps.h"
#include "region/steps/pool.h"

namespace octavo {
namespace {

void run(const RunStep& s) { adaptive_max_pool(s.x(), s.out()); }

}  // namespace

constinit const StepRow adaptive_max_pool_step{.name = "adaptive_max_pool",
                                               .keys = "x size",
                                               .reads = Layouts::kImages,
                                               .passes_params = true,
                                               .shape = adaptive_shape,
                                               .run = run};

}  // namespace octavo

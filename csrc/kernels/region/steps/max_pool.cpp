// The largest code of each window.
#include "kernels.h"
#include "region/steps.h"
#include "region/steps/pool.h"
#include "region/steps/window.h"

namespace octavo {
namespace {

void run(const RunStep& s) { max_pool(s.x(), s.step().geometry, s.out()); }

}  // namespace

constinit const StepRow max_pool_step{.name = "max_pool",
                                      .keys = "x kernel stride pad dilation ceil",
                                      .reads = Layouts::kImages,
                                      .passes_params = true,
                                      .check = check_pool_padding,
                                      .shape = windowed,
                                      .run = run};

}  // namespace octavo

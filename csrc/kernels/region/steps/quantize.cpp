// A float input to codes.
#include "kernels.h"
#include "region/steps.h"
#include "region/steps/input.h"

namespace octavo {
namespace {

void run(const RunStep& s) { quantize_image(s.input(), s.step().params, s.out()); }

}  // namespace

constinit const StepRow quantize_step{
    .name = "quantize", .keys = "in layout s z max", .shape = input_shape, .run = run};

}  // namespace octavo

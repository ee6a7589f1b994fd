// Makes the arena for a program and input sizes: shapes, derived numbers, offsets of constants,
// places of values. Called by cache.cpp, which keeps arenas; nothing here runs for a call with
// known sizes.
#include "region/arena.h"

#include "region/constants.h"
#include "region/placement.h"
#include "region/step_row.h"

namespace octavo {
namespace {

Derived derive(const ProgramStep& at, const std::vector<Placed>& values) {
  const Step& step = at.step();
  Derived d;
  if (step.row->derive == nullptr) return d;
  step.row->derive(at, values[static_cast<size_t>(step.x[0])].shape, values[at.index()].shape, &d);
  return d;
}

}  // namespace

Arena make_arena(std::shared_ptr<const Program> program,
                 const std::vector<std::vector<int64_t>>& inputs,
                 const std::vector<int64_t>& panel_counts, const std::vector<int64_t>& panel_facts,
                 int64_t units, bool splits) {
  Arena arena;
  arena.units = units;
  arena.splits = splits;
  std::vector<int64_t> channels;
  for (Shape& shape : infer_shapes(*program, inputs, panel_counts)) {
    channels.push_back(shape.c);
    arena.values.emplace_back();
    arena.values.back().shape = std::move(shape);
  }
  arena.constant_offsets = lay_out_constants(*program, channels, &arena.constants_bytes);
  for (size_t i = 0; i < program->steps.size(); ++i) {
    arena.derived.push_back(derive(ProgramStep(*program, i), arena.values));
  }
  arena.program = std::move(program);
  Placement(*arena.program, panel_facts, &arena).run();
  return arena;
}

}  // namespace octavo

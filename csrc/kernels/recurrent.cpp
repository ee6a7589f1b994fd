// Drivers of recurrent networks: one time step, and all time steps of a layer in one direction.
// Called by ops/; calls the drivers of linear layers and the cell micro-kernel.
#include <algorithm>

#include "dispatch.h"
#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace octavo {
namespace {

/// Hidden units worth a thread: 40 us at 3 ns.
constexpr int64_t kGrain = 13'000;

/// h [rows, width] times the weight: [rows, gates].
void multiply(const HiddenWeight& w, const float* h, int64_t rows, int64_t width, float* gates,
              int64_t count) {
  if (!w.packed) {
    if (w.fixed != nullptr) {
      linear_static(h, rows, width, width, *w.fixed, w.weight, gates, count);
    } else {
      linear_dynamic(h, rows, width, width, w.weight, gates, count);
    }
  } else if (w.floats) {
    linear_lowbit_float(h, rows, width, w.weight, gates, count);
  } else if (w.fixed != nullptr) {
    linear_lowbit_static(h, rows, width, *w.fixed, w.weight, gates, count);
  } else {
    linear_lowbit(h, rows, width, w.weight, gates, count);
  }
}

}  // namespace

void recurrent_cell(RecurrentMode mode, int64_t rows, int64_t width, const float* x, const float* h,
                    const float* state, float* next_h, float* next_c) {
  const ElementTable& t = active_table().element;
  const int64_t gates = gates_of(mode) * width;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(width, 1));
  parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      RecurrentCell cell{};
      cell.mode = mode;
      cell.width = width;
      cell.x = x + i * gates;
      cell.h = h + i * gates;
      cell.state = state == nullptr ? nullptr : state + i * width;
      cell.next_h = next_h + i * width;
      cell.next_c = next_c == nullptr ? nullptr : next_c + i * width;
      t.recurrent_cell_f32(cell);
    }
  });
}

void recurrent(const Recurrence& r, const HiddenWeight& weight) {
  if (r.times == 0) return;
  thread_local Scratch memory;
  const int64_t count = gates_of(r.mode) * r.width;
  auto* from_h = reinterpret_cast<float*>(memory.get(r.batch_sizes[0] * count * 4));
  int64_t row = 0;
  if (r.reverse) {
    for (int64_t t = 0; t < r.times; ++t) row += r.batch_sizes[t];
  }
  // States of sequences that have ended, or not begun, do not change.
  for (int64_t i = 0; i < r.times; ++i) {
    const int64_t rows = r.batch_sizes[r.reverse ? r.times - 1 - i : i];
    if (r.reverse) row -= rows;
    multiply(weight, r.h, rows, r.width, from_h, count);
    const float* state = r.mode == RecurrentMode::kLstm ? r.c : r.h;
    recurrent_cell(r.mode, rows, r.width, r.gates + row * count, from_h, state, r.h, r.c);
    std::copy_n(r.h, rows * r.width, r.y + row * r.width);
    if (!r.reverse) row += rows;
  }
}

}  // namespace octavo

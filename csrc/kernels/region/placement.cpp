// Storage of regions: halo from consumers, no-op steps as views, lifetimes, offsets in one arena.
// Called by arena.cpp.
#include "region/placement.h"

#include <algorithm>
#include <numeric>

#include "region/constants.h"
#include "region/step_row.h"

namespace octavo {

Placement::Placement(const Program& program, const std::vector<int64_t>& panel_facts, Arena* arena)
    : program_(program),
      steps_(program.steps),
      panel_facts_(panel_facts),
      arena_(*arena),
      values_(arena->values) {}

void Placement::run() {
  const size_t count = steps_.size();
  readers_.resize(count);
  halo_.assign(count, 0);
  parent_.resize(count);
  std::iota(parent_.begin(), parent_.end(), 0);
  channel_.assign(count, 0);
  rigid_.assign(count, false);
  for (size_t i = 0; i < count; ++i) {
    const Step& step = steps_[i];
    for (const int id : step.reads()) readers_[at(id)].push_back(static_cast<int>(i));
    if (step.row->halo != nullptr) {
      int64_t& halo = halo_[at(step.x[0])];
      halo = std::max(halo, step.row->halo(step, shape(step.x[0]), values_[i].shape));
    }
  }
  is_output_.assign(count, false);
  for (const int id : program_.outputs) is_output_[at(id)] = true;
  for (size_t i = 0; i < count; ++i) {
    const StepRow& row = *steps_[i].row;
    if (row.place != nullptr) row.place(this, static_cast<int>(i));
  }
  place();
}

int Placement::root_of(int id) const {
  while (parent_[at(id)] != id) id = parent_[at(id)];
  return id;
}

/// Whether the value's pixels lie side by side: not a range of channels of another one.
bool Placement::is_dense(int id) const {
  for (; parent_[at(id)] != id; id = parent_[at(id)]) {
    if (values_[at(id)].shape.c != values_[at(parent_[at(id)])].shape.c) return false;
  }
  return true;
}

void Placement::reshape_in_place(int i, int x) {
  const int root = root_of(x);
  if (halo_[at(root)] != 0 || halo_[at(x)] != 0 || halo_[at(i)] != 0 || !is_dense(x)) return;
  parent_[at(i)] = x;
  rigid_[at(root)] = true;
}

void Placement::view_channels(int i, int x, int64_t first) {
  for (const int reader : readers_[at(i)]) {
    const Step& step = steps_[at(reader)];
    if (step.row->wants_own_pixels != nullptr && step.x[0] == i &&
        step.row->wants_own_pixels(step)) {
      return;
    }
  }
  const int root = root_of(x);
  if (rigid_[at(root)] && halo_[at(i)] > 0) return;
  parent_[at(i)] = x;
  channel_[at(i)] = first;
  halo_[at(root)] = std::max(halo_[at(root)], halo_[at(i)]);
}

void Placement::put_inside(int x, int i, int64_t channel) {
  if (readers_[at(x)].size() != 1 || is_output_[at(x)] || parent_[at(x)] != x || rigid_[at(x)] ||
      halo_[at(x)] != 0) {
    return;
  }
  parent_[at(x)] = i;
  channel_[at(x)] = channel;
}

void Placement::fail_size(int id) const {
  ProgramStep(program_, at(id)).fail("a value that fits into memory", "one beyond 2^63 bytes");
}

int64_t Placement::product(int id, int64_t a, int64_t b) const {
  int64_t result;
  if (__builtin_mul_overflow(a, b, &result) || result > INT64_MAX / 4) fail_size(id);
  return result;
}

/// Pitches of a root from its shape and halo; returns its bytes.
int64_t Placement::lay_out(int id, int64_t* lead) {
  const Shape& s = values_[at(id)].shape;
  Image& v = values_[at(id)].view;
  v.halo = halo_[at(id)];
  v.pixel_pitch = s.c;
  v.row_pitch = product(id, s.w + v.halo, s.c);
  v.image_pitch = product(id, s.h + 2 * v.halo, v.row_pitch);
  // The last halo pixels of an image are the first of the next image. Images with parameters of
  // their own need different codes there, so each gets halo pixels of its own.
  if (steps_[at(id)].type == ValueType::kDynamicCodes) v.image_pitch += v.halo * s.c;
  *lead = product(id, v.halo, v.row_pitch) + v.halo * s.c;
  return product(id, s.n, v.image_pitch) + v.halo * s.c;
}

void Placement::place() {
  std::vector<int> block_of(steps_.size(), -1);
  std::vector<Block> blocks;
  const int end = static_cast<int>(steps_.size());
  for (int i = 0; i < end; ++i) {
    if (steps_[at(i)].type == ValueType::kFloats) continue;
    const int root = root_of(i);
    values_[at(i)].root = root;
    if (block_of[at(root)] < 0) {
      block_of[at(root)] = static_cast<int>(blocks.size());
      blocks.push_back({root, 0, 0, i, i});
    }
    Block& block = blocks[at(block_of[at(root)])];
    block.last = std::max(block.last, is_output_[at(i)] ? end : i);
    for (const int reader : readers_[at(i)]) block.last = std::max(block.last, reader);
  }
  for (Block& block : blocks) {
    block.bytes = aligned(lay_out(block.root, &block.lead));
    arena_.largest_unit_bytes =
        std::max(arena_.largest_unit_bytes, block.bytes / std::max<int64_t>(arena_.units, 1));
  }
  assign_offsets(&blocks);
  for (const Block& block : blocks) values_[at(block.root)].offset = block.offset + block.lead;
  for (int i = 0; i < end; ++i) finish_value(i);
}

/// Largest first, each at the lowest offset where nothing alive at the same time lies.
void Placement::assign_offsets(std::vector<Block>* blocks) {
  std::vector<Block*> order;
  for (Block& block : *blocks) order.push_back(&block);
  std::stable_sort(order.begin(), order.end(),
                   [](const Block* a, const Block* b) { return a->bytes > b->bytes; });
  std::vector<Block*> placed;  // by offset
  for (Block* block : order) {
    int64_t offset = 0;
    for (const Block* other : placed) {
      if (other->last < block->first || block->last < other->first) continue;
      if (other->offset - offset >= block->bytes) break;
      offset = std::max(offset, other->offset + other->bytes);
    }
    block->offset = offset;
    if (offset > INT64_MAX / 4) fail_size(block->root);
    arena_.bytes = std::max(arena_.bytes, offset + block->bytes);
    placed.insert(
        std::upper_bound(placed.begin(), placed.end(), block,
                         [](const Block* a, const Block* b) { return a->offset < b->offset; }),
        block);
  }
}

/// Fills in the view of value i inside its root's memory.
void Placement::finish_value(int i) {
  Placed& v = values_[at(i)];
  const Shape& s = v.shape;
  const int64_t units = std::max<int64_t>(arena_.units, 1);
  const bool rows = s.layout == ValueLayout::kRows;
  v.per_unit = arena_.splits ? (rows ? s.w : s.n) / units : (rows ? s.w : s.n);
  if (steps_[at(i)].type == ValueType::kFloats) return;
  const Placed& root = values_[at(v.root)];
  const Image owner = root.view;
  v.owns_halo = v.root == i && owner.halo > 0;
  v.view.n = s.n, v.view.h = s.h, v.view.w = s.w, v.view.c = s.c;
  if (v.root == i) return;
  int64_t channel = 0;
  for (int id = i; id != v.root; id = parent_[at(id)]) channel += channel_[at(id)];
  v.offset = root.offset + channel;
  v.view.halo = owner.halo;
  v.view.pixel_pitch = owner.pixel_pitch;
  v.view.row_pitch = owner.row_pitch;
  v.view.image_pitch = owner.image_pitch;
  if (s.layout != root.shape.layout || s.h != root.shape.h || s.w != root.shape.w) {
    // Another shape over the same bytes: pixels follow one another without gaps.
    v.view.row_pitch = s.w * v.view.pixel_pitch;
    v.view.image_pitch = s.h * v.view.row_pitch;
  }
}

}  // namespace octavo

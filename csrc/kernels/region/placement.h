// Decides which values of a region share memory and where the others lie. Used by arena.cpp, and by
// the rows whose value can be a view (StepRow::place).
#pragma once

#include <cstdint>
#include <vector>

#include "region/arena.h"
#include "region/program.h"

namespace octavo {

class Placement {
 public:
  /// Fills in the values of the arena, whose shapes are known.
  Placement(const Program& program, const std::vector<int64_t>& panel_facts, Arena* arena);
  void run();

  // ---- for StepRow::place

  const Step& step(int id) const { return steps_[at(id)]; }
  const Shape& shape(int id) const { return values_[at(id)].shape; }
  /// StepRow::panel_fact of step i.
  int64_t panel_fact(int i) const { return panel_facts_[at(i)]; }

  /// Value i becomes a view of value x with another shape over the same bytes, if there is no halo
  /// between the pixels.
  void reshape_in_place(int i, int x);
  /// Value i becomes the channels of value x from `first` on, unless a reader wants pixels of its
  /// own.
  void view_channels(int i, int x, int64_t first);
  /// Value x is written into value i by its producer, from `channel` on, if only step i reads it.
  void put_inside(int x, int i, int64_t channel);

 private:
  /// Memory of one root: its bytes and the steps during which it is needed.
  struct Block {
    int root;
    int64_t bytes, lead;  // lead: from the block's start to the first pixel
    int first, last;
    int64_t offset = 0;
  };

  static size_t at(int id) { return static_cast<size_t>(id); }
  int root_of(int id) const;
  bool is_dense(int id) const;
  [[noreturn]] void fail_size(int id) const;
  int64_t product(int id, int64_t a, int64_t b) const;
  int64_t lay_out(int id, int64_t* lead);
  void place();
  void assign_offsets(std::vector<Block>* blocks);
  void finish_value(int i);

  const Program& program_;
  const std::vector<Step>& steps_;
  const std::vector<int64_t>& panel_facts_;
  Arena& arena_;
  std::vector<Placed>& values_;
  std::vector<std::vector<int>> readers_;
  std::vector<int64_t> halo_;
  std::vector<int> parent_;       // value whose memory this one is a view of; itself if none
  std::vector<int64_t> channel_;  // first channel within the parent
  std::vector<bool> rigid_;       // root with views that cannot have a halo
  std::vector<bool> is_output_;
};

}  // namespace octavo

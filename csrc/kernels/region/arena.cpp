// Where the values of a region lie: halo from consumers, no-op steps as views, lifetimes, offsets
// in one arena. Called by cache.cpp, which keeps arenas; nothing here runs for a call with known
// sizes.
#include "region/arena.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels.h"

namespace octavo {
namespace {

constexpr int64_t kAlignment = 64;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

bool is_convolution(StepKind kind) {
  return kind == StepKind::kConv || kind == StepKind::kConvF32 || kind == StepKind::kConvDynamic;
}

class Placement {
 public:
  Placement(const Program& program, const std::vector<int64_t>& gathers, Arena* arena)
      : steps_(program.steps), gathers_(gathers), arena_(*arena), values_(arena->values) {}

  void run(const Program& program) {
    const size_t count = steps_.size();
    readers_.resize(count);
    halo_.assign(count, 0);
    parent_.resize(count);
    std::iota(parent_.begin(), parent_.end(), 0);
    channel_.assign(count, 0);
    rigid_.assign(count, false);
    for (size_t i = 0; i < count; ++i) {
      for (const int id : steps_[i].reads()) readers_[at(id)].push_back(static_cast<int>(i));
      if (is_convolution(steps_[i].kind)) {
        int64_t& halo = halo_[at(steps_[i].x[0])];
        halo = std::max(halo, halo_of(i));
      }
    }
    is_output_.assign(count, false);
    for (const int id : program.outputs) is_output_[at(id)] = true;
    for (size_t i = 0; i < count; ++i) find_views(static_cast<int>(i));
    place();
  }

 private:
  static size_t at(int id) { return static_cast<size_t>(id); }

  /// Pixels beyond the image that convolution i reads, on its worst side.
  int64_t halo_of(size_t i) const {
    const ConvGeometry& g = steps_[i].geometry;
    const Shape& in = values_[at(steps_[i].x[0])].shape;
    const Shape& out = values_[i].shape;
    const int64_t below =
        (out.h - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1 - in.h - g.pad_top;
    const int64_t right =
        (out.w - 1) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1 - in.w - g.pad_left;
    return std::max({g.pad_top, g.pad_left, below, right, int64_t{0}});
  }

  int root_of(int id) const {
    while (parent_[at(id)] != id) id = parent_[at(id)];
    return id;
  }

  /// Whether the value's pixels lie side by side: not a range of channels of another one.
  bool is_dense(int id) const {
    for (; parent_[at(id)] != id; id = parent_[at(id)]) {
      if (values_[at(id)].shape.c != values_[at(parent_[at(id)])].shape.c) return false;
    }
    return true;
  }

  /// Value i becomes a view of value x with another shape over the same bytes, if no halo stands
  /// between them.
  void reshape_in_place(int i, int x) {
    const int root = root_of(x);
    if (halo_[at(root)] != 0 || halo_[at(x)] != 0 || halo_[at(i)] != 0 || !is_dense(x)) return;
    parent_[at(i)] = x;
    rigid_[at(root)] = true;
  }

  void find_views(int i) {
    const Step& step = steps_[at(i)];
    if (step.x.empty()) return;
    const int x = step.x[0];
    const Shape& from = values_[at(x)].shape;
    const Shape& to = values_[at(i)].shape;
    switch (step.kind) {
      case StepKind::kFlatten:
        if (from.h == 1 && from.w == 1) reshape_in_place(i, x);
        break;
      case StepKind::kUnflatten:
        if (to.h == 1 && to.w == 1) reshape_in_place(i, x);
        break;
      case StepKind::kToRows:
      case StepKind::kToImage:
        reshape_in_place(i, x);
        break;
      case StepKind::kGatherChannels:
        if (gathers_[at(i)] >= 0) view_channels(i, x, gathers_[at(i)]);
        break;
      case StepKind::kConcat:
        find_parts(i);
        break;
      default:
        break;
    }
  }

  /// Value i becomes channels first .. of value x. Every driver reads images of any pixel pitch; a
  /// convolution with a wide kernel would have to gather its input first, so that it gets a copy
  /// instead.
  void view_channels(int i, int x, int64_t first) {
    for (const int reader : readers_[at(i)]) {
      const Step& step = steps_[at(reader)];
      if (is_convolution(step.kind) && step.x[0] == i &&
          (step.geometry.kernel_w > 1 || step.geometry.kernel_h > 1)) {
        return;
      }
    }
    const int root = root_of(x);
    if (rigid_[at(root)] && halo_[at(i)] > 0) return;
    parent_[at(i)] = x;
    channel_[at(i)] = first;
    halo_[at(root)] = std::max(halo_[at(root)], halo_[at(i)]);
  }

  /// Parts that only this concat reads, in its parameters, are written into place by their
  /// producers.
  void find_parts(int i) {
    const Step& step = steps_[at(i)];
    int64_t channel = 0;
    for (const int x : step.x) {
      const QuantParams& p = steps_[at(x)].params;
      const bool equal = p.scale == step.params.scale && p.zero_point == step.params.zero_point &&
                         p.max_code <= step.params.max_code;
      if (equal && readers_[at(x)].size() == 1 && !is_output_[at(x)] && parent_[at(x)] == x &&
          !rigid_[at(x)] && halo_[at(x)] == 0) {
        parent_[at(x)] = i;
        channel_[at(x)] = channel;
      }
      channel += values_[at(x)].shape.c;
    }
  }

  /// Memory of one root: its bytes and the steps during which it is needed.
  struct Block {
    int root;
    int64_t bytes, lead;  // lead: from the block's start to the first pixel
    int first, last;
    int64_t offset = 0;
  };

  [[noreturn]] void fail_size(int id) const {
    fail_step(*arena_.program, at(id), "a value that fits into memory", "one beyond 2^63 bytes");
  }

  int64_t product(int id, int64_t a, int64_t b) const {
    int64_t result;
    if (__builtin_mul_overflow(a, b, &result) || result > INT64_MAX / 4) fail_size(id);
    return result;
  }

  /// Pitches of a root from its shape and halo; returns its bytes.
  int64_t lay_out(int id, int64_t* lead) {
    const Shape& s = values_[at(id)].shape;
    Image& v = values_[at(id)].view;
    v.halo = halo_[at(id)];
    v.pixel_pitch = s.c;
    v.row_pitch = product(id, s.w + v.halo, s.c);
    v.image_pitch = product(id, s.h + 2 * v.halo, v.row_pitch);
    // The last halo pixels of an image are the first of the next, which with parameters of its own
    // needs another code.
    if (steps_[at(id)].type == ValueType::kDynamicCodes) v.image_pitch += v.halo * s.c;
    *lead = product(id, v.halo, v.row_pitch) + v.halo * s.c;
    return product(id, s.n, v.image_pitch) + v.halo * s.c;
  }

  void place() {
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
  void assign_offsets(std::vector<Block>* blocks) {
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

  /// The view of value i inside its root's memory.
  void finish_value(int i) {
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

  const std::vector<Step>& steps_;
  const std::vector<int64_t>& gathers_;
  Arena& arena_;
  std::vector<Placed>& values_;
  std::vector<std::vector<int>> readers_;
  std::vector<int64_t> halo_;
  std::vector<int> parent_;       // value whose memory this one is a view of; itself if none
  std::vector<int64_t> channel_;  // first channel within the parent
  std::vector<bool> rigid_;       // root with views that a halo would break
  std::vector<bool> is_output_;
};

/// Source of each output index along one axis, as torch's upsample_nearest on CPU.
std::vector<int64_t> nearest_index(int64_t in, int64_t out, int64_t wanted, double scale) {
  // A size that was asked for gives the ratio; else the factor does.
  const float ratio = wanted > 0 ? static_cast<float>(in) / static_cast<float>(out)
                                 : static_cast<float>(1.0 / scale);
  std::vector<int64_t> index(static_cast<size_t>(out));
  for (int64_t i = 0; i < out; ++i) {
    const auto source = static_cast<int64_t>(std::floor(static_cast<float>(i) * ratio));
    index[static_cast<size_t>(i)] = in == out       ? i
                                    : out == 2 * in ? i / 2
                                                    : std::min(source, in - 1);
  }
  return index;
}

/// Formed in double, rounded once; finite, so that no NaN can arise from it.
Derived derive(const Program& program, size_t i, const std::vector<Placed>& values) {
  const Step& step = program.steps[i];
  Derived d;
  const auto params = [&](int id) { return program.steps[static_cast<size_t>(id)].params; };
  const double s_out = step.params.scale;
  switch (step.kind) {
    case StepKind::kConv:
    case StepKind::kLinear:
      if (step.residual >= 0) d.m = static_cast<float>(params(step.residual).scale / s_out);
      break;
    case StepKind::kAdd: {
      const QuantParams a = params(step.x[0]), b = params(step.y);
      const double ma = a.scale / s_out, mb = b.scale / s_out;
      d.m = static_cast<float>(ma);
      d.m2 = static_cast<float>(mb);
      d.offset = static_cast<float>(step.params.zero_point - a.zero_point * ma - b.zero_point * mb);
      break;
    }
    case StepKind::kMul:
      d.m = static_cast<float>(static_cast<double>(params(step.x[0]).scale) * params(step.y).scale /
                               s_out);
      d.offset = static_cast<float>(step.params.zero_point);
      break;
    case StepKind::kAvgPool:
    case StepKind::kAdaptiveAvgPool:
      d.m = static_cast<float>(params(step.x[0]).scale / s_out);
      d.offset = static_cast<float>(step.params.zero_point);
      break;
    case StepKind::kPad:
      quantize(&step.value, 1, step.params, &d.code);
      break;
    case StepKind::kUpsampleNearest: {
      const Shape& in = values[static_cast<size_t>(step.x[0])].shape;
      const Shape& out = values[i].shape;
      d.row_index = nearest_index(in.h, out.h, step.size[0], step.scales[0]);
      d.column_index = nearest_index(in.w, out.w, step.size[1], step.scales[1]);
      break;
    }
    default:
      break;
  }
  if (!std::isfinite(d.m) || !std::isfinite(d.m2) || !std::isfinite(d.offset)) {
    fail_step(program, i, "scales whose quotient is a finite float32", "larger ones");
  }
  return d;
}

}  // namespace

std::vector<int64_t> lay_out_constants(const Program& program, const std::vector<int64_t>& channels,
                                       int64_t* bytes) {
  std::vector<int64_t> offsets(program.steps.size(), -1);
  *bytes = aligned(sizeof(ConstantsHeader));
  for (size_t i = 0; i < program.steps.size(); ++i) {
    const Step& step = program.steps[i];
    int64_t needed = 0;
    switch (step.kind) {
      case StepKind::kConv:
      case StepKind::kLinear:
      case StepKind::kConvF32:
      case StepKind::kLinearF32:
        needed = 3 * aligned(4 * channels[i]);  // start, scale, offset
        break;
      case StepKind::kAffine:
        needed = 2 * aligned(4 * channels[i]);  // scale, offset
        break;
      case StepKind::kConcat:
        needed = 256 * static_cast<int64_t>(step.x.size());  // a table a part, used or not
        break;
      default:
        break;
    }
    if (needed == 0) continue;
    offsets[i] = *bytes;
    *bytes += needed;
  }
  return offsets;
}

Arena make_arena(std::shared_ptr<const Program> program,
                 const std::vector<std::vector<int64_t>>& inputs,
                 const std::vector<int64_t>& panel_counts, const std::vector<int64_t>& gathers,
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
    arena.derived.push_back(derive(*program, i, arena.values));
  }
  arena.program = std::move(program);
  Placement(*arena.program, gathers, &arena).run(*arena.program);
  return arena;
}

}  // namespace octavo

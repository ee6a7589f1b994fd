// Runs a planned region: programs and plans are cached by content, a call then checks its panels,
// walks the steps and calls one driver each. Called by ops/region.cpp.
#include "region.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <list>
#include <mutex>
#include <new>

#include "dispatch.h"
#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"

namespace octavo {
namespace {

/// Memory for activations, of one thread: kept, grown when a region needs more.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { release(); }

  /// At least `bytes`, 64-byte aligned, with kSlack readable bytes on both sides.
  uint8_t* reserve(int64_t bytes) {
    if (bytes > size_) {
      release();
      memory_ = static_cast<uint8_t*>(
          ::operator new (static_cast<size_t>(bytes + 2 * kSlack), std::align_val_t{64}));
      std::memset(memory_, 0, kSlack);
      std::memset(memory_ + kSlack + bytes, 0, kSlack);
      size_ = bytes;
    }
    return memory_ + kSlack;
  }

 private:
  void release() {
    if (memory_ != nullptr) ::operator delete (memory_, std::align_val_t{64});
    memory_ = nullptr;
    size_ = -1;
  }

  uint8_t* memory_ = nullptr;
  int64_t size_ = -1;
};

/// Stride between rows of an input read as [rows, C]; false where there is no single one.
bool row_stride(const RegionInput& input, int64_t* stride) {
  *stride = input.sizes.empty() ? 0 : input.sizes.back();
  // Of an empty tensor nothing is read, whatever its strides.
  if (std::find(input.sizes.begin(), input.sizes.end(), 0) != input.sizes.end()) return true;
  bool first = true;
  int64_t expected = 0;
  for (size_t d = input.sizes.size() - 1; d-- > 0;) {
    if (input.sizes[d] == 1) continue;
    if (first) {
      *stride = input.strides[d];
    } else if (input.strides[d] != expected) {
      return false;
    }
    first = false;
    expected = input.strides[d] * input.sizes[d];
  }
  return true;
}

/// One run of a plan's steps over some units, on one thread's arena.
class Runner {
 public:
  Runner(const RegionPlan& plan, const std::vector<RegionInput>& inputs,
         const std::vector<RegionPanel>& panels, const char* constants,
         const std::vector<RegionOutput>& outputs, uint8_t* base, int64_t first, int64_t units)
      : plan_(plan),
        steps_(plan.program->steps),
        inputs_(inputs),
        panels_(panels),
        constants_(constants),
        outputs_(outputs),
        base_(base),
        first_(first),
        units_(units) {}

  void run() {
    for (size_t i = 0; i < steps_.size(); ++i) {
      if (steps_[i].type == ValueType::kFloats) {
        write_outputs(i);
        continue;
      }
      run_step(i);
      if (plan_.values[i].owns_halo && steps_[i].type == ValueType::kCodes) {
        fill_halo(image(i), static_cast<uint8_t>(steps_[i].params.zero_point));
      }
    }
    const std::vector<int>& ids = plan_.program->outputs;
    for (size_t o = 0; o < ids.size(); ++o) {
      const auto i = static_cast<size_t>(ids[o]);
      if (steps_[i].type != ValueType::kFloats) write_output(i, outputs_[o]);
    }
  }

 private:
  /// Units of value i that this run holds.
  int64_t extent(const Placed& v) const { return plan_.splits ? v.per_unit * units_ : v.per_unit; }

  Image image(size_t i) const {
    const Placed& v = plan_.values[i];
    Image im = v.view;
    im.data = base_ + v.offset;
    (v.shape.layout == ValueLayout::kRows ? im.w : im.n) = extent(v);
    if (v.shape.layout == ValueLayout::kRows) {
      im.row_pitch = im.image_pitch = im.w * im.pixel_pitch;
    }
    return im;
  }
  Image image(int i) const { return image(static_cast<size_t>(i)); }

  /// The float tensor behind a value, from this run's first unit on.
  FloatImage floats(size_t i, float* data, const std::vector<int64_t>& strides,
                    int64_t rows_stride) const {
    const Placed& v = plan_.values[i];
    FloatImage f;
    f.n = v.shape.n, f.h = v.shape.h, f.w = v.shape.w, f.c = v.shape.c;
    if (v.shape.layout == ValueLayout::kRows) {
      f.w = extent(v);
      f.stride_w = rows_stride;
      f.stride_c = strides.back();
      f.data = data + first_ * v.per_unit * rows_stride;
      return f;
    }
    f.n = extent(v);
    f.stride_n = strides[0], f.stride_c = strides[1], f.stride_w = strides.back();
    f.stride_h = v.shape.layout == ValueLayout::kImage ? strides[2] : 0;
    f.data = data + first_ * strides[0];
    return f;
  }

  FloatImage input(size_t i) const {
    const RegionInput& in = inputs_[static_cast<size_t>(steps_[i].input)];
    int64_t stride = 0;
    if (steps_[i].layout == ValueLayout::kRows) row_stride(in, &stride);
    // FloatImage serves both directions; inputs are only read.
    return floats(i, const_cast<float*>(in.data), in.strides, stride);
  }

  const void* panel(const Step& step) const {
    return panels_[static_cast<size_t>(step.panel)].data;
  }

  template <class T>
  const T* constants(size_t i, int64_t array) const {
    const int64_t bytes = (4 * plan_.values[i].shape.c + 63) / 64 * 64;
    return reinterpret_cast<const T*>(constants_ + plan_.constant_offsets[i] + array * bytes);
  }

  Epilogue epilogue(size_t i) const {
    return {constants<int32_t>(i, 0),
            constants<float>(i, 1),
            constants<float>(i, 2),
            plan_.derived[i].m,
            steps_[i].lo,
            steps_[i].hi,
            steps_[static_cast<size_t>(steps_[i].x[0])].params.zero_point};
  }

  void write_outputs(size_t i) {
    const std::vector<int>& ids = plan_.program->outputs;
    for (size_t o = 0; o < ids.size(); ++o) {
      if (static_cast<size_t>(ids[o]) == i) write_output(i, outputs_[o]);
    }
  }

  void write_output(size_t i, const RegionOutput& output) {
    const Step& step = steps_[i];
    const FloatImage out = floats(i, output.data, output.strides, plan_.values[i].shape.c);
    switch (step.kind) {
      case StepKind::kConvF32:
      case StepKind::kLinearF32:
        conv_f32(image(step.x[0]), step.geometry, panel(step), epilogue(i), out);
        break;
      case StepKind::kConvDynamic:
        conv_dynamic(image(step.x[0]), dynamic_[static_cast<size_t>(step.x[0])].data(),
                     step.geometry, panel(step), out);
        break;
      default:
        dequantize_image(image(i), step.params, out);
        break;
    }
  }

  void run_dynamic(size_t i) {
    const Step& step = steps_[i];
    const FloatImage source = input(i);
    const Image out = image(i);
    if (dynamic_.empty()) dynamic_.resize(steps_.size());
    std::vector<QuantParams>& params = dynamic_[i];
    params.resize(static_cast<size_t>(source.n));
    dynamic_params(source, step.params.max_code, params.data());
    quantize_image_per_sample(source, params.data(), out);
    if (!plan_.values[i].owns_halo) return;
    for (int64_t n = 0; n < out.n; ++n) {
      Image one = out;
      one.n = 1;
      one.data += n * out.image_pitch;
      fill_halo(one, static_cast<uint8_t>(params[static_cast<size_t>(n)].zero_point));
    }
  }

  void run_concat(size_t i) {
    const Step& step = steps_[i];
    Image part = image(i);
    for (size_t p = 0; p < step.x.size(); ++p) {
      const int id = step.x[p];
      const Image x = image(id);
      part.c = x.c;
      if (!plan_.in_place(id, static_cast<int>(i))) {
        const QuantParams& from = steps_[static_cast<size_t>(id)].params;
        if (from.scale == step.params.scale && from.zero_point == step.params.zero_point &&
            from.max_code <= step.params.max_code) {
          copy(x, part);
        } else {
          const auto* tables =
              reinterpret_cast<const uint8_t*>(constants_ + plan_.constant_offsets[i]);
          apply_table(x, tables + 256 * p, false, part);
        }
      }
      part.data += x.c;
    }
  }

  void run_step(size_t i) {
    const Step& step = steps_[i];
    const Derived& d = plan_.derived[i];
    const Placed& v = plan_.values[i];
    const float max_code = static_cast<float>(step.params.max_code);
    // A view of what it reads holds its codes already.
    const bool is_view = !step.x.empty() && step.kind != StepKind::kConcat &&
                         plan_.in_place(step.x[0], static_cast<int>(i));
    switch (step.kind) {
      case StepKind::kQuantize:
        quantize_image(input(i), step.params, image(i));
        break;
      case StepKind::kQuantizeDynamic:
        run_dynamic(i);
        break;
      case StepKind::kConv:
      case StepKind::kLinear: {
        Image residual;
        if (step.residual >= 0) residual = image(step.residual);
        conv_u8(image(step.x[0]), step.geometry, panel(step), epilogue(i),
                step.residual >= 0 ? &residual : nullptr, image(i));
        break;
      }
      case StepKind::kConvF32:
      case StepKind::kLinearF32:
      case StepKind::kConvDynamic:
        break;
      case StepKind::kAdd:
        add(image(step.x[0]), image(step.y), d.m, d.m2, d.offset, step.lo, step.hi, image(i));
        break;
      case StepKind::kMul:
        multiply(image(step.x[0]), image(step.y),
                 steps_[static_cast<size_t>(step.x[0])].params.zero_point,
                 steps_[static_cast<size_t>(step.y)].params.zero_point, d.m, d.offset, step.lo,
                 step.hi, image(i));
        break;
      case StepKind::kConcat:
        run_concat(i);
        break;
      case StepKind::kAffine:
        affine(image(step.x[0]), constants<float>(i, 0), constants<float>(i, 1), step.lo, step.hi,
               image(i));
        break;
      case StepKind::kTable:
      case StepKind::kChannelTable:
        apply_table(image(step.x[0]), static_cast<const uint8_t*>(panel(step)),
                    step.kind == StepKind::kChannelTable, image(i));
        break;
      case StepKind::kMaxPool:
        max_pool(image(step.x[0]), step.geometry, image(i));
        break;
      case StepKind::kAvgPool: {
        const AveragePool pool{step.geometry, step.pad_bottom, step.pad_right, step.include_pad,
                               step.divisor};
        average_pool(image(step.x[0]), pool,
                     steps_[static_cast<size_t>(step.x[0])].params.zero_point, d.m, d.offset, 0.0f,
                     max_code, image(i));
        break;
      }
      case StepKind::kAdaptiveAvgPool:
        adaptive_average_pool(image(step.x[0]),
                              steps_[static_cast<size_t>(step.x[0])].params.zero_point, d.m,
                              d.offset, 0.0f, max_code, image(i));
        break;
      case StepKind::kAdaptiveMaxPool:
        adaptive_max_pool(image(step.x[0]), image(i));
        break;
      case StepKind::kGatherChannels:
        if (is_view) break;
        gather_channels(image(step.x[0]), static_cast<const int32_t*>(panel(step)),
                        static_cast<uint8_t>(step.params.zero_point), image(i));
        break;
      case StepKind::kSlice:
        slice(image(step.x[0]), step.rows[0], step.rows[2], step.columns[0], step.columns[2],
              image(i));
        break;
      case StepKind::kUpsampleNearest:
        upsample_nearest(image(step.x[0]), d.row_index.data(), d.column_index.data(), image(i));
        break;
      case StepKind::kPad:
        pad(image(step.x[0]), step.geometry.pad_top, step.geometry.pad_left, step.mode, d.code,
            image(i));
        break;
      case StepKind::kFlatten:
        if (!is_view) flatten(image(step.x[0]), image(i));
        break;
      case StepKind::kUnflatten:
        if (!is_view) unflatten(image(step.x[0]), image(i));
        break;
      case StepKind::kToRows:
        if (!is_view)
          copy(image(step.x[0]), image_of_rows(i, plan_.values[static_cast<size_t>(step.x[0])]));
        break;
      case StepKind::kToImage:
        if (!is_view) copy(image_of_rows(static_cast<size_t>(step.x[0]), v), image(i));
        break;
    }
  }

  /// Rows [N * H * W, C] seen as the image they come from or become.
  Image image_of_rows(size_t rows, const Placed& as) const {
    Image im = image(rows);
    im.n = extent(as), im.h = as.shape.h, im.w = as.shape.w;
    im.row_pitch = im.w * im.pixel_pitch;
    im.image_pitch = im.h * im.row_pitch;
    return im;
  }

  const RegionPlan& plan_;
  const std::vector<Step>& steps_;
  const std::vector<RegionInput>& inputs_;
  const std::vector<RegionPanel>& panels_;
  const char* constants_;
  const std::vector<RegionOutput>& outputs_;
  uint8_t* base_;
  int64_t first_, units_;
  std::vector<std::vector<QuantParams>> dynamic_;  // of each quantize_dynamic step, a sample each
};

// ---- programs and plans by content
// ------------------------------------------------------------------------

/// What a call's sizes lead to.
struct CallPlan {
  std::vector<int64_t> key;
  std::shared_ptr<const std::vector<Shape>> shapes;
  std::shared_ptr<const RegionPlan> plan;
  int64_t units = 0, parallel_units = 0;
};

/// A parsed program with the plans for the last sizes it met, and panel headers that were found
/// sound.
struct CachedProgram {
  std::shared_ptr<const Program> program;
  uint64_t sample = 0;        // of the text, see sample_of
  std::list<CallPlan> plans;  // latest first
  std::vector<PanelHeader> headers;
};

constexpr size_t kPlansPerProgram = 4;
/// A transformer has a few regions a block; programs are some KiB each.
constexpr size_t kPrograms = 256;

/// A few bytes of the text in one number: tells most programs apart before they are compared in
/// full.
uint64_t sample_of(std::string_view text) {
  uint64_t hash = text.size();
  if (text.size() < 8) return hash;
  for (size_t i = 0; i < 8; ++i) {
    uint64_t word;
    std::memcpy(&word, text.data() + (text.size() - 8) * i / 7, 8);
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

CachedProgram& find_program(std::string_view text) {
  thread_local std::list<CachedProgram> cache;  // latest first
  const uint64_t sample = sample_of(text);
  for (auto entry = cache.begin(); entry != cache.end(); ++entry) {
    if (entry->sample == sample && entry->program->text == text) {
      cache.splice(cache.begin(), cache, entry);
      return *entry;
    }
  }
  CachedProgram fresh;
  fresh.program = parse_program(text);
  fresh.sample = sample;
  fresh.headers.resize(fresh.program->steps.size());
  cache.push_front(std::move(fresh));
  if (cache.size() > kPrograms) cache.pop_back();
  return cache.front();
}

/// Units of work of a call and how they are shared out.
class CallPlanner {
 public:
  CallPlanner(std::shared_ptr<const Program> program, const std::vector<RegionInput>& inputs,
              std::vector<int64_t> panel_counts, std::vector<int64_t> gathers)
      : program_(std::move(program)),
        panel_counts_(std::move(panel_counts)),
        gathers_(std::move(gathers)) {
    for (const RegionInput& input : inputs) sizes_.push_back(input.sizes);
  }

  CallPlan make(int threads) {
    CallPlan call;
    call.shapes =
        std::make_shared<const std::vector<Shape>>(infer_shapes(*program_, sizes_, panel_counts_));
    find_units(*call.shapes);
    call.units = units_;
    if (!splits_ || units_ == 0) {
      call.plan = plan(sizes_, 1, false);
      return call;
    }
    const int64_t unit_bytes = plan(sizes_for(1), 1, true)->largest_unit_bytes;
    // Activations of one chunk stay in a core's second-level cache. Rows read their weights anew
    // for every chunk, which asks for longer ones.
    const int64_t target = int64_t{256} << (unit_is_row_ ? 12 : 10);
    int64_t chunk = std::clamp<int64_t>(target / unit_bytes, unit_is_row_ ? 64 : 1, INT64_MAX);
    chunk = std::min(chunk, units_);
    if (threads > 1) {
      // Fewer units than pay for a thread each: threads work inside the drivers, on all units at
      // once.
      const int64_t least = unit_is_row_ ? 64 : 1;
      if (units_ < threads * least) {
        chunk = units_;
      } else {
        // A remainder would keep one thread busy while others wait: the drivers share it.
        call.parallel_units =
            unit_is_row_ || units_ >= 4 * threads ? units_ : units_ - units_ % threads;
        chunk = std::min(chunk, (call.parallel_units + threads - 1) / threads);
      }
    }
    call.plan = plan(sizes_for(chunk), chunk, true);
    return call;
  }

 private:
  /// A unit is an image, or a row where a region knows nothing but rows.
  void find_units(const std::vector<Shape>& shapes) {
    bool only_rows = true, regular = true;
    const Shape* first = nullptr;
    for (const std::vector<int64_t>& sizes : sizes_) {
      regular = regular && sizes.size() >= 2 && sizes[0] == sizes_[0][0];
      only_rows = only_rows && !sizes.empty();
    }
    for (size_t i = 0; i < program_->steps.size(); ++i) {
      only_rows = only_rows && shapes[i].layout == ValueLayout::kRows;
      if (program_->steps[i].input < 0) continue;
      if (first == nullptr) first = &shapes[i];
      only_rows = only_rows && shapes[i].lead == first->lead;
    }
    splits_ = first != nullptr && (only_rows || regular);
    unit_is_row_ = only_rows;
    units_ = !splits_ ? 1 : unit_is_row_ ? first->w : sizes_[0][0];
  }

  std::vector<std::vector<int64_t>> sizes_for(int64_t units) const {
    std::vector<std::vector<int64_t>> sizes = sizes_;
    for (std::vector<int64_t>& s : sizes) {
      if (unit_is_row_) {
        s = {units, s.back()};
      } else {
        s[0] = units;
      }
    }
    return sizes;
  }

  std::shared_ptr<const RegionPlan> plan(const std::vector<std::vector<int64_t>>& sizes,
                                         int64_t units, bool splits) const {
    return std::make_shared<const RegionPlan>(
        make_plan(program_, sizes, panel_counts_, gathers_, units, splits));
  }

  std::shared_ptr<const Program> program_;
  std::vector<std::vector<int64_t>> sizes_;
  std::vector<int64_t> panel_counts_, gathers_;
  bool splits_ = false, unit_is_row_ = false;
  int64_t units_ = 0;
};

/// Checks one call's panels against program and shapes. Headers seen before are not checked again.
class PanelChecker {
 public:
  PanelChecker(const Program& program, const std::vector<RegionPanel>& panels,
               std::vector<PanelHeader>* headers)
      : program_(program), panels_(panels), headers_(*headers) {}

  /// For every gather_channels the first channel of a contiguous range, else -1; empty if there is
  /// no such step.
  std::vector<int64_t> gathers() const {
    std::vector<int64_t> first(program_.steps.size(), -1);
    for (size_t i = 0; i < first.size(); ++i) {
      if (program_.steps[i].kind != StepKind::kGatherChannels) continue;
      const RegionPanel& panel = panel_of(i);
      if (panel.type != RegionPanel::Type::kInts) fail(i, "int32 [C]", "another dtype");
      const auto* index = static_cast<const int32_t*>(panel.data);
      bool contiguous = panel.count > 0 && index[0] >= 0;
      for (int64_t c = 1; c < panel.count && contiguous; ++c) contiguous = index[c] == index[0] + c;
      if (contiguous) first[i] = index[0];
    }
    return first;
  }

  void check(const std::vector<Shape>& shapes) {
    const auto layout = static_cast<int32_t>(active_table().gemm.layout);
    for (size_t i = 0; i < program_.steps.size(); ++i) {
      const Step& step = program_.steps[i];
      if (step.panel < 0) continue;
      const RegionPanel& panel = panel_of(i);
      const int64_t channels = shapes[static_cast<size_t>(step.x[0])].c;
      switch (step.kind) {
        case StepKind::kAffine:
          check_table(i, panel, RegionPanel::Type::kFloats, 2 * channels);
          break;
        case StepKind::kTable:
          check_table(i, panel, RegionPanel::Type::kBytes, 256);
          break;
        case StepKind::kChannelTable:
          check_table(i, panel, RegionPanel::Type::kBytes, 256 * channels);
          break;
        case StepKind::kGatherChannels:
          check_gather(i, panel, channels);
          break;
        default:
          check_weight(i, panel, channels, layout);
          break;
      }
    }
  }

 private:
  [[noreturn]] void fail(size_t i, const std::string& expected, const std::string& got) const {
    fail_step(program_, i,
              "panel " + std::to_string(program_.steps[i].panel) + " to be " + expected, got);
  }

  const RegionPanel& panel_of(size_t i) const {
    return panels_[static_cast<size_t>(program_.steps[i].panel)];
  }

  void check_table(size_t i, const RegionPanel& panel, RegionPanel::Type type,
                   int64_t count) const {
    if (panel.type != type) fail(i, "of another dtype", "this one");
    if (panel.count != count) {
      fail(i, "of " + std::to_string(count) + " elements", std::to_string(panel.count));
    }
  }

  void check_gather(size_t i, const RegionPanel& panel, int64_t channels) const {
    const auto* index = static_cast<const int32_t*>(panel.data);
    for (int64_t c = 0; c < panel.count; ++c) {
      if (index[c] < -1 || index[c] >= channels) {
        fail(i, "channels in -1.." + std::to_string(channels - 1), std::to_string(index[c]));
      }
    }
  }

  void check_weight(size_t i, const RegionPanel& panel, int64_t channels, int32_t layout) {
    const Step& step = program_.steps[i];
    if (panel.type != RegionPanel::Type::kBytes ||
        panel.count < static_cast<int64_t>(sizeof(PanelHeader)) ||
        reinterpret_cast<uintptr_t>(panel.data) % 64 != 0) {
      fail(i, "a packed weight", std::to_string(panel.count) + " elements that are none");
    }
    const auto& header = *static_cast<const PanelHeader*>(panel.data);
    PanelHeader& known = headers_[i];
    if (std::memcmp(&header, &known, sizeof(header)) != 0 || header.layout != layout ||
        header.total_bytes > panel.count) {
      const PanelCheck result = check_panel(panel.data, panel.count);
      if (result == PanelCheck::kOtherLayout) {
        fail(i, "in the active instruction set's layout", "another layout. Pack the weight again");
      }
      if (result != PanelCheck::kOk) {
        fail(i, "a packed weight", std::to_string(panel.count) + " bytes that are none");
      }
      known = header;
    }
    if (header.out_channels != step.channels || header.in_channels != channels ||
        header.kernel_h != step.geometry.kernel_h || header.kernel_w != step.geometry.kernel_w) {
      const auto text = [](int64_t out, int64_t in, int64_t h, int64_t w) {
        return std::to_string(in) + " to " + std::to_string(out) + " channels, kernel " +
               std::to_string(h) + "x" + std::to_string(w);
      };
      fail(i, text(step.channels, channels, step.geometry.kernel_h, step.geometry.kernel_w),
           text(header.out_channels, header.in_channels, header.kernel_h, header.kernel_w));
    }
  }

  const Program& program_;
  const std::vector<RegionPanel>& panels_;
  std::vector<PanelHeader>& headers_;
};

}  // namespace

bool rows_have_one_pitch(const RegionInput& input) {
  int64_t stride;
  return input.sizes.empty() || row_stride(input, &stride);
}

RegionCall::RegionCall(std::string_view text, const std::vector<RegionInput>& inputs,
                       const std::vector<RegionPanel>& panels, const void* constants,
                       int64_t constants_bytes)
    : inputs_(inputs), panels_(panels), constants_(static_cast<const char*>(constants)) {
  CachedProgram& cached = find_program(text);
  program_ = cached.program;
  if (static_cast<int>(panels.size()) != program_->panel_count) {
    throw RegionError("region: expected " + std::to_string(program_->panel_count) +
                      " panels, got " + std::to_string(panels.size()) + ".");
  }
  PanelChecker checker(*program_, panels, &cached.headers);

  // Everything that a plan depends on.
  const int threads = max_threads();
  std::vector<int64_t> gathers = checker.gathers();
  std::vector<int64_t> key{threads};
  for (const RegionInput& input : inputs) {
    key.push_back(static_cast<int64_t>(input.sizes.size()));
    key.insert(key.end(), input.sizes.begin(), input.sizes.end());
  }
  for (size_t i = 0; i < gathers.size(); ++i) {
    const Step& step = program_->steps[i];
    if (step.kind != StepKind::kGatherChannels) continue;
    key.push_back(panels[static_cast<size_t>(step.panel)].count);
    key.push_back(gathers[i]);
  }
  auto found = std::find_if(cached.plans.begin(), cached.plans.end(),
                            [&](const CallPlan& p) { return p.key == key; });
  if (found == cached.plans.end()) {
    std::vector<int64_t> counts;
    for (const RegionPanel& panel : panels) counts.push_back(panel.count);
    CallPlan fresh =
        CallPlanner(program_, inputs, std::move(counts), std::move(gathers)).make(threads);
    fresh.key = std::move(key);
    cached.plans.push_front(std::move(fresh));
    if (cached.plans.size() > kPlansPerProgram) cached.plans.pop_back();
  } else {
    cached.plans.splice(cached.plans.begin(), cached.plans, found);
  }
  const CallPlan& call = cached.plans.front();
  shapes_ = call.shapes;
  plan_ = call.plan;
  units_ = call.units;
  parallel_units_ = call.parallel_units;
  checker.check(*shapes_);

  for (const Step& step : program_->steps) {
    if (step.input >= 0 && step.layout == ValueLayout::kRows &&
        !rows_have_one_pitch(inputs[static_cast<size_t>(step.input)])) {
      throw RegionError("region: expected input " + std::to_string(step.input) +
                        " with rows of one pitch, got other strides. Use .contiguous().");
    }
  }
  ConstantsHeader header{};
  if (constants_bytes >= static_cast<int64_t>(sizeof(header))) {
    std::memcpy(&header, constants, sizeof(header));
  }
  if (header.magic != kConstantsMagic || header.program_hash != program_->hash ||
      header.total_bytes != constants_bytes || constants_bytes != plan_->constants_bytes ||
      reinterpret_cast<uintptr_t>(constants) % 64 != 0) {
    throw RegionError(
        "region: expected the constants that region_constants made for this program, got others.");
  }
}

size_t RegionCall::output_count() const { return program_->outputs.size(); }

std::vector<int64_t> RegionCall::output_sizes(size_t i) const {
  return (*shapes_)[static_cast<size_t>(program_->outputs[i])].logical();
}

bool RegionCall::output_is_image(size_t i) const {
  return program_->steps[static_cast<size_t>(program_->outputs[i])].layout != ValueLayout::kRows &&
         (*shapes_)[static_cast<size_t>(program_->outputs[i])].layout == ValueLayout::kImage;
}

void RegionCall::run(const std::vector<RegionOutput>& outputs) const {
  if (units_ == 0) return;
  const auto run_range = [&](int64_t begin, int64_t end) {
    thread_local Arena arena;
    uint8_t* base = arena.reserve(plan_->arena_bytes);
    for (int64_t first = begin; first < end; first += plan_->units) {
      Runner(*plan_, inputs_, panels_, constants_, outputs, base, first,
             std::min(plan_->units, end - first))
          .run();
    }
  };
  if (parallel_units_ > 0) {
    // Pieces must not throw: the first failure to allocate is kept, and raised again here.
    std::mutex mutex;
    std::exception_ptr failure;
    parallel_for(0, parallel_units_, 1, [&](int64_t begin, int64_t end) {
      try {
        run_range(begin, end);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (failure == nullptr) failure = std::current_exception();
      }
    });
    if (failure != nullptr) std::rethrow_exception(failure);
  }
  if (parallel_units_ < units_) run_range(parallel_units_, units_);
}

}  // namespace octavo

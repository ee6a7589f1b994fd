// Runs a region: a call finds its program and arena (cache.h), checks its panels
// (panels.h), walks the steps and calls one driver each. Called by ops/region.cpp.
#include "region/call.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>

#include "dispatch.h"
#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"
#include "region/cache.h"
#include "region/panels.h"

namespace octavo {
namespace {

/// Memory for activations, of one thread: kept, grown when a region needs more.
class ArenaMemory {
 public:
  ArenaMemory() = default;
  ArenaMemory(const ArenaMemory&) = delete;
  ArenaMemory& operator=(const ArenaMemory&) = delete;
  ~ArenaMemory() { release(); }

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

/// One run of the steps over some units, in one thread's memory.
class Runner {
 public:
  Runner(const Arena& arena, const std::vector<RegionInput>& inputs,
         const std::vector<RegionPanel>& panels, const char* constants,
         const std::vector<RegionOutput>& outputs, uint8_t* base, int64_t first, int64_t units)
      : arena_(arena),
        steps_(arena.program->steps),
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
      if (arena_.values[i].owns_halo && steps_[i].type == ValueType::kCodes) {
        fill_halo(image(i), static_cast<uint8_t>(steps_[i].params.zero_point));
      }
    }
    const std::vector<int>& ids = arena_.program->outputs;
    for (size_t o = 0; o < ids.size(); ++o) {
      const auto i = static_cast<size_t>(ids[o]);
      if (steps_[i].type != ValueType::kFloats) write_output(i, outputs_[o]);
    }
  }

 private:
  /// Units of value i that this run holds.
  int64_t extent(const Placed& v) const { return arena_.splits ? v.per_unit * units_ : v.per_unit; }

  Image image(size_t i) const {
    const Placed& v = arena_.values[i];
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
    const Placed& v = arena_.values[i];
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
    const int64_t bytes = (4 * arena_.values[i].shape.c + 63) / 64 * 64;
    return reinterpret_cast<const T*>(constants_ + arena_.constant_offsets[i] + array * bytes);
  }

  Epilogue epilogue(size_t i) const {
    return {constants<int32_t>(i, 0),
            constants<float>(i, 1),
            constants<float>(i, 2),
            arena_.derived[i].m,
            steps_[i].lo,
            steps_[i].hi,
            steps_[static_cast<size_t>(steps_[i].x[0])].params.zero_point};
  }

  void write_outputs(size_t i) {
    const std::vector<int>& ids = arena_.program->outputs;
    for (size_t o = 0; o < ids.size(); ++o) {
      if (static_cast<size_t>(ids[o]) == i) write_output(i, outputs_[o]);
    }
  }

  void write_output(size_t i, const RegionOutput& output) {
    const Step& step = steps_[i];
    const FloatImage out = floats(i, output.data, output.strides, arena_.values[i].shape.c);
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
    if (!arena_.values[i].owns_halo) return;
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
      if (!arena_.in_place(id, static_cast<int>(i))) {
        const QuantParams& from = steps_[static_cast<size_t>(id)].params;
        if (from.scale == step.params.scale && from.zero_point == step.params.zero_point &&
            from.max_code <= step.params.max_code) {
          copy(x, part);
        } else {
          const auto* tables =
              reinterpret_cast<const uint8_t*>(constants_ + arena_.constant_offsets[i]);
          apply_table(x, tables + 256 * p, false, part);
        }
      }
      part.data += x.c;
    }
  }

  void run_step(size_t i) {
    const Step& step = steps_[i];
    const Derived& d = arena_.derived[i];
    const Placed& v = arena_.values[i];
    const float max_code = static_cast<float>(step.params.max_code);
    // A view of what it reads holds its codes already.
    const bool is_view = !step.x.empty() && step.kind != StepKind::kConcat &&
                         arena_.in_place(step.x[0], static_cast<int>(i));
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
          copy(image(step.x[0]), image_of_rows(i, arena_.values[static_cast<size_t>(step.x[0])]));
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

  const Arena& arena_;
  const std::vector<Step>& steps_;
  const std::vector<RegionInput>& inputs_;
  const std::vector<RegionPanel>& panels_;
  const char* constants_;
  const std::vector<RegionOutput>& outputs_;
  uint8_t* base_;
  int64_t first_, units_;
  std::vector<std::vector<QuantParams>> dynamic_;  // of each quantize_dynamic step, a sample each
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

  const SizedCall& call = find_call(cached, inputs, panels, checker.gathers());
  shapes_ = call.shapes;
  arena_ = call.arena;
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
      header.total_bytes != constants_bytes || constants_bytes != arena_->constants_bytes ||
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
    thread_local ArenaMemory memory;
    uint8_t* base = memory.reserve(arena_->bytes);
    for (int64_t first = begin; first < end; first += arena_->units) {
      Runner(*arena_, inputs_, panels_, constants_, outputs, base, first,
             std::min(arena_->units, end - first))
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

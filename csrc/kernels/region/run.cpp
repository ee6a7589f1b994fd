// Runs the steps of a region one after another: each row calls its driver. Called by call.cpp.
#include "region/run.h"

#include "kernels.h"
#include "region/step_row.h"

namespace octavo {

void Run::run() {
  const std::vector<Step>& steps = arena_.program->steps;
  for (size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].type == ValueType::kFloats) {
      write_outputs(i);
      continue;
    }
    steps[i].row->run(RunStep(this, i));
    if (placed(i).owns_halo && steps[i].type == ValueType::kCodes) {
      fill_halo(image(i), static_cast<uint8_t>(steps[i].params.zero_point));
    }
  }
  const std::vector<int>& ids = arena_.program->outputs;
  for (size_t o = 0; o < ids.size(); ++o) {
    const auto i = static_cast<size_t>(ids[o]);
    if (steps[i].type != ValueType::kFloats) write_output(i, arguments_.outputs[o]);
  }
}

Image Run::image(size_t i) const {
  const Placed& v = placed(i);
  Image im = v.view;
  im.data = base_ + v.offset;
  (v.shape.layout == ValueLayout::kRows ? im.w : im.n) = extent(v);
  if (v.shape.layout == ValueLayout::kRows) {
    im.row_pitch = im.image_pitch = im.w * im.pixel_pitch;
  }
  return im;
}

/// The float tensor behind a value, from this run's first unit on.
FloatImage Run::floats(size_t i, float* data, const std::vector<int64_t>& strides,
                       int64_t rows_stride) const {
  const Placed& v = placed(i);
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

void Run::write_outputs(size_t i) {
  const std::vector<int>& ids = arena_.program->outputs;
  for (size_t o = 0; o < ids.size(); ++o) {
    if (static_cast<size_t>(ids[o]) == i) write_output(i, arguments_.outputs[o]);
  }
}

void Run::write_output(size_t i, const RegionOutput& output) {
  const Step& step = arena_.program->steps[i];
  const FloatImage out = floats(i, output.data, output.strides, placed(i).shape.c);
  if (step.type == ValueType::kFloats) {
    step.row->write(RunStep(this, i), out);
  } else {
    dequantize_image(image(i), step.params, out);
  }
}

FloatImage RunStep::input() const {
  const RegionInput& in = run_.arguments_.inputs[static_cast<size_t>(step().input)];
  int64_t stride = 0;
  if (step().layout == ValueLayout::kRows) row_stride(in, &stride);
  // FloatImage serves both directions; inputs are only read.
  return run_.floats(index(), const_cast<float*>(in.data), in.strides, stride);
}

Image RunStep::rows_as(int rows, int image) const {
  const Placed& as = run_.placed(static_cast<size_t>(image));
  Image im = value(rows);
  im.n = run_.extent(as), im.h = as.shape.h, im.w = as.shape.w;
  im.row_pitch = im.w * im.pixel_pitch;
  im.image_pitch = im.h * im.row_pitch;
  return im;
}

std::vector<QuantParams>& RunStep::dynamic_params(int id) const {
  if (run_.dynamic_.empty()) run_.dynamic_.resize(program_.steps.size());
  return run_.dynamic_[static_cast<size_t>(id)];
}

}  // namespace octavo

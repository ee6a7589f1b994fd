// What the drivers of integer products share: a view of a packed panel, where results go, and how
// work is cut for caches and threads. Included by conv.cpp, product_*.cpp and linear_dynamic.cpp.
#pragma once

#include <cstdint>

#include "dispatch.h"
#include "kernel_table.h"
#include "kernels.h"
#include "panel.h"
#include "parallel.h"
#include "scratch.h"

namespace octavo {

/// Most products whose sum fits int32: 65,793 * 255 * 128 < 2^31.
constexpr int64_t kLongestSum = 65793;

/// Work worth a thread, in multiply-adds: 40 us at 200 GMAC/s; depthwise tiles do a sixth of that.
constexpr int64_t kDenseGrain = int64_t{8} << 20;
constexpr int64_t kDepthwiseGrain = int64_t{1} << 20;

/// Activations of one band stay in L2 while all panels pass over them.
constexpr int64_t kBandBytes = 384 << 10;

/// A panel's header and sections, and the kernels that a call computes with it: chosen here, once,
/// by the panel's layout.
struct Panel {
  explicit Panel(const void* p)
      : header(*static_cast<const PanelHeader*>(p)),
        layout(static_cast<PanelLayout>(header.layout)),
        geometry(panel_geometry(header)),
        kernels(*table_for(layout)),
        table(kernels.gemm.layout == layout ? kernels.gemm : kernels.narrow),
        weights(static_cast<const int8_t*>(p) + header.weight_offset),
        colsum(at<int32_t>(p, header.colsum_offset)),
        scale(at<float>(p, header.scale_offset)),
        bias(at<float>(p, header.bias_offset)) {}

  template <class T>
  static const T* at(const void* p, int64_t offset) {
    return reinterpret_cast<const T*>(static_cast<const uint8_t*>(p) + offset);
  }

  const PanelHeader& header;
  PanelLayout layout;
  PanelGeometry geometry;
  const KernelTable& kernels;
  const GemmTable& table;
  const int8_t* weights;
  const int32_t* colsum;
  const float* scale;
  const float* bias;
};

/// Where results go: to codes (residual may be null) or to floats.
struct Sink {
  const Image* u8 = nullptr;
  const Image* residual = nullptr;
  const FloatImage* f32 = nullptr;
};

struct Size {
  int64_t n, h, w, c;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/// First input code that output row 0, column 0 of image n reads (in the halo if there is padding).
inline const uint8_t* first_tap(const Image& in, const ConvGeometry& g, int64_t n) {
  return in.data + n * in.image_pitch - g.pad_top * in.row_pitch - g.pad_left * in.pixel_pitch;
}

/// Number of bands that `units` rows (or pixels) of `unit_bytes` activations are cut into, so that
/// a band stays in cache and every thread gets work; `columns` jobs share a band.
inline int64_t band_count(int64_t units, int64_t unit_bytes, int64_t columns, int64_t macs,
                          int64_t grain) {
  int64_t bands = columns > 1 ? ceil_div(units * unit_bytes, kBandBytes) : 1;
  const int64_t threads = max_threads();
  if (threads > 1 && macs > grain) {
    // Threads take equal runs of jobs; with several jobs a thread, no thread waits long for the
    // others.
    const int64_t wanted = smaller(4 * threads, larger(threads, macs / grain));
    if (bands * columns < wanted || (bands * columns) % threads != 0) {
      bands = round_up(larger(bands, ceil_div(wanted, columns)), threads);
    }
  }
  return larger(1, smaller(bands, units));
}

/// How many panels one job takes, given those left in a block and those left to a thread.
inline int64_t panels_at_once(const GemmTable& table, int64_t block, int64_t thread) {
  return table.joins_panels ? smaller(block, thread) : 1;
}

inline int64_t grain_of(int64_t items, int64_t macs, int64_t grain) {
  return macs <= 0 ? items : larger(1, smaller(items, items * grain / macs));
}

/// Sets where a dense or depthwise job writes codes: output pixel (y, x) of image n, from `channel`
/// on.
template <class Job>
void aim(Job& job, const Sink& sink, int64_t channel, int64_t n, int64_t y, int64_t x) {
  const Image& out = *sink.u8;
  job.out = out.data + n * out.image_pitch + y * out.row_pitch + x * out.pixel_pitch + channel;
  job.out_row_pitch = out.row_pitch;
  job.out_pixel_pitch = out.pixel_pitch;
  if (sink.residual == nullptr) return;
  const Image& r = *sink.residual;
  job.residual = r.data + n * r.image_pitch + y * r.row_pitch + x * r.pixel_pitch + channel;
  job.residual_row_pitch = r.row_pitch;
  job.residual_pixel_pitch = r.pixel_pitch;
}

/// Runs a job whose first float result goes to `to`: in place where channels are contiguous, else
/// through a row of scratch. a_step: from the input of an output row to that of the next.
template <class Job>
void run_floats(Job job, void (*kernel)(const Job&), const FloatImage& out, float* to,
                int64_t channels, int64_t a_step) {
  if (out.stride_c == 1) {
    job.out_f32 = to;
    job.f32_row_pitch = out.stride_h;
    job.f32_pixel_pitch = out.stride_w;
    kernel(job);
    return;
  }
  thread_local Scratch memory;
  auto* row =
      reinterpret_cast<float*>(memory.get(job.w * channels * static_cast<int64_t>(sizeof(float))));
  const int64_t rows = job.h;
  job.h = 1;
  job.out_f32 = row;
  job.f32_row_pitch = job.w * channels;
  job.f32_pixel_pitch = channels;
  for (int64_t i = 0; i < rows; ++i, to += out.stride_h, job.a += a_step) {
    kernel(job);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t j = 0; j < job.w; ++j)
        to[c * out.stride_c + j * out.stride_w] = row[j * channels + c];
    }
  }
}

void run_dense(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
               const Sink& sink, const Size& size);
void run_depthwise(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
                   const Sink& sink, const Size& size);

/// The same for more than kLongestSum products an output.
void run_long(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
              const Sink& sink, const Size& size);

/// Exact sum of one output, halo included. Slow.
int64_t long_sum(const Image& in, const ConvGeometry& g, const Panel& panel, int64_t n, int64_t y,
                 int64_t x, int64_t o);

/// Sets whether weights are narrow, and splits the panel of a job whose b points to its first run
/// if the ISA has split panels and there are enough pixels for it.
void prepare_weights(GemmJob& job, const Panel& panel, int64_t pixels);

}  // namespace octavo

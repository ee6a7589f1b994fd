// Driver of every integer product: dense, grouped and depthwise convolutions and linear layers.
// Decides blocking, threads and K runs, then hands grids of output pixels to the active ISA's tiles
// (gemm_table.h). Called by ops/ and region.cpp; memory orders of weights are in panel.h.
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "dispatch.h"
#include "kernel_table.h"
#include "kernels.h"
#include "panel.h"
#include "parallel.h"
#include "scratch.h"

namespace octavo {
namespace {

/// Sums of u8 x s8 products hold in int32 up to this many: 65,793 * 255 * 128 < 2^31.
constexpr int64_t kLongestSum = 65793;

/// Work worth a thread, in multiply-adds: 40 us at 200 GMAC/s; depthwise tiles do a sixth of that.
constexpr int64_t kDenseGrain = int64_t{8} << 20;
constexpr int64_t kDepthwiseGrain = int64_t{1} << 20;

/// Activations of one band stay in L2 while all panels pass over them.
constexpr int64_t kBandBytes = 384 << 10;

/// Rows of dynamic linear layers quantized at a time.
constexpr int64_t kRowsBytes = 640 << 10;

std::atomic<int64_t> macs_done{0};

/// Pixels of a job that pay for splitting its panel first, where the ISA has that.
constexpr int64_t kSplitPixels = 16;

enum ScratchUse { kGather, kSplit, kFloats, kRows, kRowParams, kTaps, kSample, kScratchUses };

uint8_t* scratch(ScratchUse use, int64_t bytes) {
  thread_local Scratch memory[kScratchUses];
  return memory[use].get(bytes);
}

/// A panel's header and sections.
struct Panel {
  explicit Panel(const void* p)
      : header(*static_cast<const PanelHeader*>(p)),
        layout(static_cast<PanelLayout>(header.layout)),
        geometry(panel_geometry(header)),
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

/// Says how wide weights are and splits the panel of a job whose b points to its first run, if that
/// helps and `pixels` are enough.
void prepare_weights(GemmJob& job, const Panel& panel, const GemmTable& table, int64_t pixels,
                     int64_t k) {
  job.narrow = panel.header.bits <= 7;
  if (table.split_panel == nullptr || job.narrow || pixels < kSplitPixels) return;
  job.split = scratch(kSplit, table.split_bytes(job.width, k));
  job.split_k = k;
  table.split_panel(job.b, job.width, k, job.split);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/// First input code that output row 0, column 0 of image n reads (in the halo if there is padding).
const uint8_t* first_tap(const Image& in, const ConvGeometry& g, int64_t n) {
  return in.data + n * in.image_pitch - g.pad_top * in.row_pitch - g.pad_left * in.pixel_pitch;
}

/// Kernel rows [first, last) of output row y that do not lie wholly in the halo.
struct KernelRows {
  int64_t first, last;
  bool operator==(const KernelRows&) const = default;
};
KernelRows inner_rows(const ConvGeometry& g, int64_t in_h, int64_t y) {
  const int64_t top = y * g.stride_h - g.pad_top;
  const int64_t first = top >= 0 ? 0 : smaller(g.kernel_h, ceil_div(-top, g.dilation_h));
  const int64_t last =
      top >= in_h ? first : smaller(g.kernel_h, ceil_div(in_h - top, g.dilation_h));
  return {first, larger(first, last)};
}

/// Number of bands that `units` rows (or pixels) of `unit_bytes` activations are cut into, so that
/// a band stays in cache and every thread gets work; `columns` jobs share a band.
int64_t band_count(int64_t units, int64_t unit_bytes, int64_t columns, int64_t macs,
                   int64_t grain) {
  int64_t bands = columns > 1 ? ceil_div(units * unit_bytes, kBandBytes) : 1;
  const int64_t threads = max_threads();
  if (threads > 1 && macs > grain) {
    // Threads take equal runs of jobs; a few jobs a thread even out what columns leave over.
    const int64_t wanted = smaller(4 * threads, larger(threads, macs / grain));
    if (bands * columns < wanted || (bands * columns) % threads != 0) {
      bands = round_up(larger(bands, ceil_div(wanted, columns)), threads);
    }
  }
  return larger(1, smaller(bands, units));
}

int64_t grain_of(int64_t items, int64_t macs, int64_t grain) {
  return macs <= 0 ? items : larger(1, smaller(items, items * grain / macs));
}

// ---- dense
// ------------------------------------------------------------------------------------------

/// One dense convolution on its way through the tiles.
struct Dense {
  const Image& in;
  const ConvGeometry& g;
  const Panel& panel;
  const Epilogue& e;
  const Sink& sink;
  Size size;
  const GemmTable& table;
  bool gather = false;       // rows are copied into panel order first
  bool skip_halo = false;    // kernel rows in the halo add nothing
  int64_t runs_per_row = 1;  // of a kernel row
  std::vector<int64_t> run_offset;

  void plan_runs();
  void run_item(int64_t units, int64_t bands, int64_t item) const;

 private:
  void rows(GemmJob& job, int64_t channel, int64_t n, int64_t y0, int64_t y1) const;
  void send(GemmJob& job, int64_t channel, int64_t n, int64_t y, int64_t x) const;
  void gathered(GemmJob& job, int64_t channel, int64_t block, int64_t n, int64_t y,
                int64_t x) const;
  void send_floats(GemmJob& job, int64_t channel, int64_t n, int64_t y, int64_t x) const;
};

/// Chooses how a pixel's activations are cut into runs that follow the panel's order.
void Dense::plan_runs() {
  const PanelGeometry& p = panel.geometry;
  const bool row_runs = panel.header.blocks == 1;
  const bool contiguous =
      g.kernel_w == 1 || (g.dilation_w == 1 && in.pixel_pitch == panel.header.in_channels);
  const int64_t k_unit = kPanelUnits[panel.header.layout].k_unit;
  skip_halo = e.zero_point == 0;
  if (row_runs && contiguous) {
    runs_per_row = 1;
  } else if (!row_runs || p.block_in % k_unit == 0) {
    runs_per_row = g.kernel_w;
  } else {
    // Kernel rows are packed without gaps between pixels, activations are not: copy them together.
    gather = true;
    skip_halo = false;
    for (int64_t r = 0; r < p.runs; ++r) run_offset.push_back(r * p.run_bytes);
    return;
  }
  run_offset.reserve(static_cast<size_t>(g.kernel_h * runs_per_row));
  for (int64_t i = 0; i < g.kernel_h; ++i) {
    for (int64_t j = 0; j < runs_per_row; ++j) {
      run_offset.push_back(i * g.dilation_h * in.row_pitch + j * g.dilation_w * in.pixel_pitch);
    }
  }
}

/// Item = (band of rows or pixels, panel): bands outermost, so that neighbours share activations.
void Dense::run_item(int64_t units, int64_t bands, int64_t item) const {
  const PanelGeometry& p = panel.geometry;
  const int64_t columns = panel.header.blocks * p.panels;
  const int64_t band = item / columns;
  const int64_t block = item % columns / p.panels, index = item % p.panels;
  const int64_t nr = kPanelUnits[panel.header.layout].nr;
  const int64_t first = units * band / bands, last = units * (band + 1) / bands;
  const int64_t channel = block * p.block_out + index * nr;

  GemmJob job{};
  job.a_row_pitch = g.stride_h * in.row_pitch;
  job.a_pixel_pitch = g.stride_w * in.pixel_pitch;
  job.run_bytes = gather || runs_per_row == 1 || panel.header.blocks > 1 ? p.run_bytes : p.block_in;
  job.b = panel.weights + panel_start(panel.layout, p, block, index);
  job.width = panel_width(panel.layout, p, index);
  job.n = smaller(nr, p.block_out - index * nr);
  job.start = e.start + channel;
  job.scale = e.scale + channel;
  job.offset = e.offset + channel;
  job.lo = e.lo;
  job.hi = e.hi;
  job.residual_scale = e.residual_scale;
  job.gap_code = -1;
  // a of pixel (0, 0) is set by rows(); channels of the block begin here.
  const int64_t in_channel = block * p.block_in;
  const int64_t pixels = (last - first) * (size.n * size.h == 1 ? 1 : size.w);
  prepare_weights(job, panel, table, pixels, p.runs * p.run_bytes);

  if (size.n * size.h == 1) {
    job.h = 1;
    job.w = last - first;
    if (gather) {
      gathered(job, channel, block, 0, 0, first);
      return;
    }
    job.a = first_tap(in, g, 0) + in_channel + first * job.a_pixel_pitch;
    job.run_offset = run_offset.data();
    job.runs = static_cast<int64_t>(run_offset.size());
    if (skip_halo) {
      const KernelRows k = inner_rows(g, in.h, 0);
      job.first_run = k.first * runs_per_row;
      job.run_offset += job.first_run;
      job.b += k.first * runs_per_row * job.run_bytes * job.width;
      job.runs = (k.last - k.first) * runs_per_row;
    }
    send(job, channel, 0, 0, first);
    return;
  }
  job.w = size.w;
  for (int64_t row = first; row < last;) {
    const int64_t n = row / size.h, y0 = row % size.h;
    const int64_t y1 = smaller(size.h, y0 + last - row);
    if (gather) {
      job.h = 1;
      for (int64_t y = y0; y < y1; ++y) gathered(job, channel, block, n, y, 0);
    } else {
      job.a = first_tap(in, g, n) + in_channel;
      rows(job, channel, n, y0, y1);
    }
    row += y1 - y0;
  }
}

/// Output rows [y0, y1) of image n in stretches that use the same kernel rows. job.a: tap (0, 0) of
/// row 0.
void Dense::rows(GemmJob& job, int64_t channel, int64_t n, int64_t y0, int64_t y1) const {
  const uint8_t* image = job.a;
  const int8_t* b = job.b;
  for (int64_t y = y0; y < y1;) {
    KernelRows k{0, g.kernel_h};
    int64_t end = y1;
    if (skip_halo) {
      k = inner_rows(g, in.h, y);
      for (end = y + 1; end < y1 && inner_rows(g, in.h, end) == k;) ++end;
    }
    job.h = end - y;
    job.a = image + y * job.a_row_pitch;
    job.first_run = k.first * runs_per_row;
    job.run_offset = run_offset.data() + job.first_run;
    job.runs = (k.last - k.first) * runs_per_row;
    job.b = b + k.first * runs_per_row * job.run_bytes * job.width;
    send(job, channel, n, y, 0);
    y = end;
  }
  job.b = b;
}

/// Copies a row of pixels into panel order, then multiplies it.
void Dense::gathered(GemmJob& job, int64_t channel, int64_t block, int64_t n, int64_t y,
                     int64_t x) const {
  const PanelGeometry& p = panel.geometry;
  const int64_t pixel_bytes = p.runs * p.run_bytes;
  uint8_t* copy = scratch(kGather, job.w * pixel_bytes);
  const uint8_t* source = first_tap(in, g, n) + block * p.block_in + y * job.a_row_pitch;
  for (int64_t i = 0; i < job.w; ++i) {
    for (int64_t r = 0; r < p.runs; ++r) {
      uint8_t* to = copy + i * pixel_bytes + r * p.run_bytes;
      const uint8_t* from =
          source + (x + i) * g.stride_w * in.pixel_pitch + r * g.dilation_h * in.row_pitch;
      for (int64_t j = 0; j < g.kernel_w; ++j) {
        std::memcpy(to + j * p.block_in, from + j * g.dilation_w * in.pixel_pitch,
                    static_cast<size_t>(p.block_in));
      }
    }
  }
  GemmJob local = job;
  local.a = copy;
  local.a_row_pitch = job.w * pixel_bytes;
  local.a_pixel_pitch = pixel_bytes;
  local.run_offset = run_offset.data();
  local.runs = p.runs;
  send(local, channel, n, y, x);
}

/// Adds the destination, output pixel (y, x) of image n, and calls the tile.
void Dense::send(GemmJob& job, int64_t channel, int64_t n, int64_t y, int64_t x) const {
  if (sink.f32 != nullptr) {
    send_floats(job, channel, n, y, x);
    return;
  }
  const Image& out = *sink.u8;
  job.out = out.data + n * out.image_pitch + y * out.row_pitch + x * out.pixel_pitch + channel;
  job.out_row_pitch = out.row_pitch;
  job.out_pixel_pitch = out.pixel_pitch;
  if (out.halo > 0 && job.w == size.w) {
    // The code that the halo holds now (or garbage, if its producer fills it later).
    job.gap_code = out.data[n * out.image_pitch - out.row_pitch - out.pixel_pitch];
  }
  if (sink.residual != nullptr) {
    const Image& r = *sink.residual;
    job.residual = r.data + n * r.image_pitch + y * r.row_pitch + x * r.pixel_pitch + channel;
    job.residual_row_pitch = r.row_pitch;
    job.residual_pixel_pitch = r.pixel_pitch;
  }
  table.gemm_u8s8_u8(job);
}

/// Float results: in place where channels are contiguous, else through a row of scratch.
void Dense::send_floats(GemmJob& job, int64_t channel, int64_t n, int64_t y, int64_t x) const {
  const FloatImage& out = *sink.f32;
  float* to =
      out.data + n * out.stride_n + y * out.stride_h + x * out.stride_w + channel * out.stride_c;
  if (out.stride_c == 1) {
    job.out_f32 = to;
    job.f32_row_pitch = out.stride_h;
    job.f32_pixel_pitch = out.stride_w;
    table.gemm_u8s8_f32(job);
    return;
  }
  auto* row = reinterpret_cast<float*>(
      scratch(kFloats, job.w * job.n * static_cast<int64_t>(sizeof(float))));
  GemmJob one = job;
  one.h = 1;
  one.out_f32 = row;
  one.f32_row_pitch = job.w * job.n;
  one.f32_pixel_pitch = job.n;
  for (int64_t i = 0; i < job.h; ++i, to += out.stride_h, one.a += job.a_row_pitch) {
    table.gemm_u8s8_f32(one);
    for (int64_t c = 0; c < job.n; ++c) {
      for (int64_t j = 0; j < job.w; ++j)
        to[c * out.stride_c + j * out.stride_w] = row[j * job.n + c];
    }
  }
}

bool flat(const Image& i) {
  return (i.h == 1 || i.row_pitch == i.w * i.pixel_pitch) &&
         (i.n == 1 || i.image_pitch == i.h * i.w * i.pixel_pitch);
}
Image flattened(const Image& i) {
  Image f = i;
  f.w = i.n * i.h * i.w;
  f.n = f.h = 1;
  f.halo = 0;
  f.row_pitch = f.image_pitch = f.w * f.pixel_pitch;
  return f;
}
bool flat(const FloatImage& i) {
  return (i.h == 1 || i.stride_h == i.w * i.stride_w) &&
         (i.n == 1 || i.stride_n == i.h * i.w * i.stride_w);
}
FloatImage flattened(const FloatImage& i) {
  FloatImage f = i;
  f.w = i.n * i.h * i.w;
  f.n = f.h = 1;
  return f;
}

void run_dense(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
               const Sink& sink, const Size& size) {
  const bool pointwise = g.kernel_h == 1 && g.kernel_w == 1 && g.stride_h == 1 && g.stride_w == 1 &&
                         g.pad_top == 0 && g.pad_left == 0;
  if (pointwise && size.n * size.h > 1 && in.h == size.h && in.w == size.w && flat(in) &&
      (sink.u8 == nullptr || flat(*sink.u8)) && (sink.f32 == nullptr || flat(*sink.f32)) &&
      (sink.residual == nullptr || flat(*sink.residual))) {
    // Pixels of all images are rows of one matrix.
    const Image in_flat = flattened(in);
    Image u8, residual;
    FloatImage f32;
    Sink sink_flat;
    if (sink.u8 != nullptr) sink_flat.u8 = &(u8 = flattened(*sink.u8));
    if (sink.residual != nullptr) sink_flat.residual = &(residual = flattened(*sink.residual));
    if (sink.f32 != nullptr) sink_flat.f32 = &(f32 = flattened(*sink.f32));
    run_dense(in_flat, g, panel, e, sink_flat, {1, 1, size.n * size.h * size.w, size.c});
    return;
  }

  Dense dense{in, g, panel, e, sink, size, active_table().gemm, false, false, 1, {}};
  dense.plan_runs();
  const PanelGeometry& p = panel.geometry;
  const int64_t columns = panel.header.blocks * p.panels;
  const bool by_pixels = size.n * size.h == 1;
  const int64_t units = by_pixels ? size.w : size.n * size.h;
  const int64_t unit_bytes = by_pixels ? g.stride_w * in.pixel_pitch : g.stride_h * in.row_pitch;
  const int64_t macs = size.n * size.h * size.w * size.c * p.runs * p.run_bytes;
  const int64_t bands = band_count(units, unit_bytes, columns, macs, kDenseGrain);
  const int64_t items = bands * columns;
  parallel_for(0, items, grain_of(items, macs, kDenseGrain), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) dense.run_item(units, bands, i);
  });
}

// ---- depthwise
// --------------------------------------------------------------------------------------

void depthwise_item(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
                    const Sink& sink, const Size& size, int64_t channel, int64_t first,
                    int64_t last) {
  const GemmTable& table = active_table().gemm;
  DepthwiseJob job{};
  job.a_row_pitch = in.row_pitch;
  job.a_pixel_pitch = in.pixel_pitch;
  job.w = size.w;
  job.channels = smaller(kDepthwiseChunk, size.c - channel);
  job.kernel_h = g.kernel_h;
  job.kernel_w = g.kernel_w;
  job.stride_h = g.stride_h;
  job.stride_w = g.stride_w;
  job.dilation_h = g.dilation_h;
  job.dilation_w = g.dilation_w;
  job.weights =
      panel.weights + depthwise_offset(panel.layout, g.kernel_h, g.kernel_w, channel, 0, 0);
  job.start = e.start + channel;
  job.scale = e.scale + channel;
  job.offset = e.offset + channel;
  job.lo = e.lo;
  job.hi = e.hi;
  job.residual_scale = e.residual_scale;
  job.scratch = scratch(kTaps, depthwise_scratch(g.kernel_h, g.kernel_w, g.dilation_w));
  for (int64_t row = first; row < last;) {
    const int64_t n = row / size.h, y = row % size.h;
    job.h = smaller(size.h - y, last - row);
    job.a = first_tap(in, g, n) + y * g.stride_h * in.row_pitch + channel;
    if (sink.f32 == nullptr) {
      const Image& out = *sink.u8;
      job.out = out.data + n * out.image_pitch + y * out.row_pitch + channel;
      job.out_row_pitch = out.row_pitch;
      job.out_pixel_pitch = out.pixel_pitch;
      if (sink.residual != nullptr) {
        const Image& r = *sink.residual;
        job.residual = r.data + n * r.image_pitch + y * r.row_pitch + channel;
        job.residual_row_pitch = r.row_pitch;
        job.residual_pixel_pitch = r.pixel_pitch;
      }
      table.depthwise_u8s8_u8(job);
    } else {
      const FloatImage& out = *sink.f32;
      float* to = out.data + n * out.stride_n + y * out.stride_h + channel * out.stride_c;
      if (out.stride_c == 1) {
        job.out_f32 = to;
        job.f32_row_pitch = out.stride_h;
        job.f32_pixel_pitch = out.stride_w;
        table.depthwise_u8s8_f32(job);
      } else {
        auto* floats = reinterpret_cast<float*>(
            scratch(kFloats, size.w * job.channels * static_cast<int64_t>(sizeof(float))));
        DepthwiseJob one = job;
        one.h = 1;
        one.out_f32 = floats;
        one.f32_row_pitch = size.w * job.channels;
        one.f32_pixel_pitch = job.channels;
        for (int64_t i = 0; i < job.h; ++i) {
          table.depthwise_u8s8_f32(one);
          for (int64_t c = 0; c < job.channels; ++c) {
            for (int64_t x = 0; x < size.w; ++x) {
              to[c * out.stride_c + x * out.stride_w] = floats[x * job.channels + c];
            }
          }
          to += out.stride_h;
          one.a += g.stride_h * in.row_pitch;
        }
      }
    }
    row += job.h;
  }
}

void run_depthwise(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
                   const Sink& sink, const Size& size) {
  const int64_t columns = ceil_div(size.c, kDepthwiseChunk);
  const int64_t units = size.n * size.h;
  const int64_t macs = units * size.w * size.c * g.kernel_h * g.kernel_w;
  const int64_t bands =
      band_count(units, g.stride_h * in.row_pitch, columns, macs, kDepthwiseGrain);
  const int64_t items = bands * columns;
  parallel_for(0, items, grain_of(items, macs, kDepthwiseGrain), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t band = i / columns;
      depthwise_item(in, g, panel, e, sink, size, i % columns * kDepthwiseChunk,
                     units * band / bands, units * (band + 1) / bands);
    }
  });
}

// ---- longer sums than int32 holds
// --------------------------------------------------------------------

/// Weight code of (channel o, input channel i of its block, tap t).
int8_t weight_at(const Panel& panel, int64_t o, int64_t i, int64_t t) {
  const PanelHeader& h = panel.header;
  const PanelGeometry& p = panel.geometry;
  if (h.depthwise != 0) {
    return panel.weights[depthwise_offset(panel.layout, h.kernel_h, h.kernel_w, o, t / h.kernel_w,
                                          t % h.kernel_w)];
  }
  const int64_t nr = kPanelUnits[h.layout].nr;
  const int64_t column = o % p.block_out, index = column / nr;
  const int64_t run = h.blocks == 1 ? t / h.kernel_w : t;
  const int64_t place = h.blocks == 1 ? t % h.kernel_w * p.block_in + i : i;
  return panel.weights[panel_start(panel.layout, p, o / p.block_out, index) +
                       panel_offset(panel.layout, panel_width(panel.layout, p, index),
                                    run * p.run_bytes + place, column % nr)];
}

/// Exact sum of one output, halo included. Slow: only layers with more than kLongestSum inputs come
/// here.
int64_t long_sum(const Image& in, const ConvGeometry& g, const Panel& panel, int64_t n, int64_t y,
                 int64_t x, int64_t o) {
  const PanelGeometry& p = panel.geometry;
  const bool depthwise = panel.header.depthwise != 0;
  const int64_t inputs = depthwise ? 1 : p.block_in;
  const int64_t first = depthwise ? o : p.block_out == 0 ? 0 : o / p.block_out * p.block_in;
  int64_t sum = 0;
  for (int64_t t = 0; t < g.kernel_h * g.kernel_w; ++t) {
    const uint8_t* a = first_tap(in, g, n) +
                       (y * g.stride_h + t / g.kernel_w * g.dilation_h) * in.row_pitch +
                       (x * g.stride_w + t % g.kernel_w * g.dilation_w) * in.pixel_pitch + first;
    for (int64_t i = 0; i < inputs; ++i) sum += int64_t{a[i]} * weight_at(panel, o, i, t);
  }
  return sum;
}

float clamp(float v, float lo, float hi) {
  v = v > lo ? v : lo;
  return v < hi ? v : hi;
}

void run_long(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
              const Sink& sink, const Size& size) {
  parallel_for(0, size.n * size.h * size.w, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t x = i % size.w, y = i / size.w % size.h, n = i / size.w / size.h;
      for (int64_t o = 0; o < size.c; ++o) {
        // start may not fit int32 here; with the zero point it is formed exactly.
        const int64_t start =
            e.zero_point >= 0 ? -int64_t{e.zero_point} * panel.colsum[o] : int64_t{e.start[o]};
        const int64_t sum = start + long_sum(in, g, panel, n, y, x, o);
        float v = std::fmaf(static_cast<float>(sum), e.scale[o], e.offset[o]);
        if (sink.f32 != nullptr) {
          const FloatImage& out = *sink.f32;
          out.data[n * out.stride_n + y * out.stride_h + x * out.stride_w + o * out.stride_c] =
              clamp(v, e.lo, e.hi);
          continue;
        }
        if (sink.residual != nullptr) {
          const Image& r = *sink.residual;
          const uint8_t code = r.data[n * r.image_pitch + y * r.row_pitch + x * r.pixel_pitch + o];
          v = std::fmaf(static_cast<float>(code), e.residual_scale, v);
        }
        const Image& out = *sink.u8;
        out.data[n * out.image_pitch + y * out.row_pitch + x * out.pixel_pitch + o] =
            static_cast<uint8_t>(std::nearbyintf(clamp(v, e.lo, e.hi)));
      }
    }
  });
}

/// Products of one output channel without padding.
int64_t products_per_output(const Panel& panel) {
  const PanelHeader& h = panel.header;
  return h.in_channels / h.groups * h.kernel_h * h.kernel_w;
}

void run(const Image& in, const ConvGeometry& g, const Panel& panel, const Epilogue& e,
         const Sink& sink, const Size& size) {
  if (size.n * size.h * size.w * size.c == 0) return;
  const int64_t products = products_per_output(panel);
  macs_done.fetch_add(size.n * size.h * size.w * size.c * products, std::memory_order_relaxed);
  if (products > kLongestSum) {
    run_long(in, g, panel, e, sink, size);
  } else if (panel.header.depthwise != 0) {
    run_depthwise(in, g, panel, e, sink, size);
  } else {
    run_dense(in, g, panel, e, sink, size);
  }
}

// ---- dynamic linear
// -----------------------------------------------------------------------------------

/// A block of quantized rows in the calling thread's scratch.
struct QuantizedRows {
  uint8_t* codes;
  int64_t pitch;
  float* scale;
  int32_t* zero_point;
};

QuantizedRows quantize_rows(const float* x, int64_t rows, int64_t k, int64_t ldx) {
  const ElementTable& table = active_table().element;
  QuantizedRows q;
  // A pitch of a multiple of 1 KiB would put the rows of a tile into few sets of L1.
  q.pitch = round_up(k, 64);
  if (q.pitch % 1024 == 0) q.pitch += 64;
  q.codes = scratch(kRows, rows * q.pitch);
  q.scale = reinterpret_cast<float*>(scratch(kRowParams, rows * 8));
  q.zero_point = reinterpret_cast<int32_t*>(q.scale + rows);
  for (int64_t i = 0; i < rows; ++i) {
    float min = 0.0f, max = 0.0f;  // every range holds 0
    table.range_f32(x + i * ldx, k, &min, &max);
    const QuantParams p = params_of_range(min, max, 255);
    const auto zero = static_cast<float>(p.zero_point);
    const QuantizeRule rule{1.0f / p.scale, -zero, 255.0f - zero, p.zero_point};
    table.quantize_f32_u8(x + i * ldx, k, rule, q.codes + i * q.pitch);
    q.scale[i] = p.scale;
    q.zero_point[i] = p.zero_point;
  }
  return q;
}

void multiply_rows(const QuantizedRows& q, int64_t rows, const Panel& panel, int64_t index,
                   float* y, int64_t ldy) {
  const PanelGeometry& p = panel.geometry;
  const int64_t nr = kPanelUnits[panel.header.layout].nr;
  const int64_t channel = index * nr;
  const int64_t no_offset = 0;
  GemmJob job{};
  job.a = q.codes;
  job.a_pixel_pitch = q.pitch;
  job.a_row_pitch = rows * q.pitch;
  job.h = 1;
  job.w = rows;
  job.run_offset = &no_offset;
  job.runs = 1;
  job.run_bytes = p.run_bytes;
  job.b = panel.weights + panel_start(panel.layout, p, 0, index);
  job.width = panel_width(panel.layout, p, index);
  job.n = smaller(nr, p.block_out - channel);
  job.colsum = panel.colsum + channel;
  job.scale = panel.scale + channel;
  job.offset = panel.bias + channel;
  job.row_scale = q.scale;
  job.row_zero = q.zero_point;
  job.out_f32 = y + channel;
  job.f32_pixel_pitch = ldy;
  job.f32_row_pitch = rows * ldy;
  job.gap_code = -1;
  const GemmTable& table = active_table().gemm;
  prepare_weights(job, panel, table, rows, p.run_bytes);
  table.gemm_u8s8_rows(job);
}

void long_rows(const float* x, int64_t m, int64_t k, int64_t ldx, const Panel& panel, float* y,
               int64_t ldy) {
  parallel_for(0, m, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const QuantizedRows q = quantize_rows(x + i * ldx, 1, k, ldx);
      Image row;
      row.data = q.codes;
      row.n = row.h = row.w = 1;
      row.c = k;
      for (int64_t o = 0; o < panel.header.out_channels; ++o) {
        const int64_t sum = long_sum(row, ConvGeometry{}, panel, 0, 0, 0, o) -
                            int64_t{q.zero_point[0]} * panel.colsum[o];
        y[i * ldy + o] =
            std::fmaf(static_cast<float>(sum), q.scale[0] * panel.scale[o], panel.bias[o]);
      }
    }
  });
}

}  // namespace

int64_t conv_out_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad_total,
                      int64_t dilation) {
  const int64_t room = in + pad_total - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

void conv_u8(const Image& in, const ConvGeometry& g, const void* panel, const Epilogue& e,
             const Image* residual, const Image& out) {
  Sink sink;
  sink.u8 = &out;
  sink.residual = residual;
  run(in, g, Panel(panel), e, sink, {out.n, out.h, out.w, out.c});
}

void conv_f32(const Image& in, const ConvGeometry& g, const void* panel, const Epilogue& e,
              const FloatImage& out) {
  Sink sink;
  sink.f32 = &out;
  run(in, g, Panel(panel), e, sink, {out.n, out.h, out.w, out.c});
}

void conv_dynamic(const Image& in, const QuantParams* params, const ConvGeometry& g,
                  const void* panel, const FloatImage& out) {
  const Panel p(panel);
  const int64_t channels = out.c;
  auto* start = reinterpret_cast<int32_t*>(scratch(kSample, channels * 8));
  auto* scale = reinterpret_cast<float*>(start + channels);
  Epilogue e;
  e.start = start;
  e.scale = scale;
  e.offset = p.bias;
  e.lo = -std::numeric_limits<float>::infinity();
  e.hi = std::numeric_limits<float>::infinity();
  for (int64_t n = 0; n < out.n; ++n) {
    e.zero_point = params[n].zero_point;
    for (int64_t c = 0; c < channels; ++c) {
      start[c] = static_cast<int32_t>(0u - static_cast<uint32_t>(e.zero_point) *
                                               static_cast<uint32_t>(p.colsum[c]));
      scale[c] = params[n].scale * p.scale[c];
    }
    Image sample = in;
    sample.n = 1;
    sample.data += n * in.image_pitch;
    FloatImage result = out;
    result.n = 1;
    result.data += n * out.stride_n;
    conv_f32(sample, g, panel, e, result);
  }
}

void linear_dynamic(const float* x, int64_t m, int64_t k, int64_t ldx, const void* panel, float* y,
                    int64_t ldy) {
  const Panel p(panel);
  const int64_t columns = p.geometry.panels;
  if (m * p.header.out_channels == 0) return;
  const int64_t macs = m * k * p.header.out_channels;
  macs_done.fetch_add(macs, std::memory_order_relaxed);
  if (k > kLongestSum) {
    long_rows(x, m, k, ldx, p, y, ldy);
    return;
  }
  // Rows are quantized by the thread that multiplies them: once where threads split rows, once a
  // thread where they split panels (few rows: a small part of the product).
  const int64_t threads = max_threads();
  int64_t bands = larger(1, ceil_div(m * (k + 64), kRowsBytes));
  if (threads > 1 && macs > kDenseGrain && bands < threads && m >= 28 * threads) bands = threads;
  bands = smaller(bands, m);
  const int64_t items = bands * columns;
  parallel_for(0, items, grain_of(items, macs, kDenseGrain), [&](int64_t begin, int64_t end) {
    int64_t held = -1;
    QuantizedRows q{};
    for (int64_t i = begin; i < end; ++i) {
      const int64_t band = i / columns, first = m * band / bands, last = m * (band + 1) / bands;
      if (band != held) {
        q = quantize_rows(x + first * ldx, last - first, k, ldx);
        held = band;
      }
      multiply_rows(q, last - first, p, i % columns, y + first * ldy, ldy);
    }
  });
}

void add_integer_macs(int64_t macs) { macs_done.fetch_add(macs, std::memory_order_relaxed); }
int64_t integer_macs() { return macs_done.load(std::memory_order_relaxed); }
void reset_integer_macs() { macs_done.store(0, std::memory_order_relaxed); }

}  // namespace octavo

// Dense and grouped convolutions and linear layers: decides blocking, threads and K runs, then
// hands grids of output pixels to the tiles of the panel's ISA (gemm_table.h). Called by conv.cpp.
#include <cstring>
#include <vector>

#include "product.h"

namespace octavo {
namespace {

/// Jobs of at least so many pixels split their panel first, if the ISA has split panels.
constexpr int64_t kSplitPixels = 16;

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

/// One dense convolution: what its jobs share.
struct Dense {
  const Image& in;
  const ConvGeometry& g;
  const Panel& panel;
  const Epilogue& e;
  const Sink& sink;
  Size size;
  bool gather = false;       // rows are copied into panel order first
  bool skip_halo = false;    // kernel rows in the halo add nothing
  int64_t runs_per_row = 1;  // of a kernel row
  std::vector<int64_t> run_offset;

  void plan_runs();
  int64_t run_items(int64_t units, int64_t bands, int64_t item, int64_t end) const;

 private:
  /// Bytes from a panel's start to the weights of the first kernel row of `k`.
  int64_t run_start(const GemmJob& job, const KernelRows& k) const {
    return panel_offset(panel.layout, job.width, job.depth, k.first * runs_per_row * job.run_bytes,
                        0);
  }
  void rows(GemmJob& job, int64_t channel, int64_t n, int64_t y0, int64_t y1) const;
  void send(GemmJob& job, int64_t channel, int64_t n, int64_t y, int64_t x) const;
  void gathered(GemmJob& job, int64_t channel, int64_t block, int64_t n, int64_t y,
                int64_t x) const;
};

/// Chooses how a pixel's activations are cut into runs that follow the panel's order.
void Dense::plan_runs() {
  const PanelGeometry& p = panel.geometry;
  const bool row_runs = panel.header.blocks == 1;
  const bool contiguous =
      g.kernel_w == 1 || (g.dilation_w == 1 && in.pixel_pitch == panel.header.in_channels);
  const int64_t k_unit = kPanelUnits[panel.header.layout].k_unit;
  // Not for tiles of 16 pixels: extra jobs for the first and last rows cost them more than they
  // save.
  skip_halo = e.zero_point == 0 && panel.layout != PanelLayout::kAmx;
  if (row_runs && contiguous) {
    runs_per_row = 1;
  } else if (!row_runs || (p.block_in % k_unit == 0 && p.joined_rows == 0)) {
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

/// An item is a band of rows or pixels times a panel; bands are outermost, so that neighbouring
/// items share activations. Computes the items from `item` on that go together and returns the
/// next, at most `end`.
int64_t Dense::run_items(int64_t units, int64_t bands, int64_t item, int64_t end) const {
  const PanelGeometry& p = panel.geometry;
  const int64_t columns = panel.header.blocks * p.panels;
  const int64_t band = item / columns;
  const int64_t block = item % columns / p.panels, index = item % p.panels;
  const int64_t nr = kPanelUnits[panel.header.layout].nr;
  const int64_t first = units * band / bands, last = units * (band + 1) / bands;
  const int64_t channel = block * p.block_out + index * nr;
  // Joined panels would be read again for each image.
  const bool one_image = size.n * size.h == 1 || first / size.h == (last - 1) / size.h;
  const int64_t count = one_image ? panels_at_once(panel.table, p.panels - index, end - item) : 1;

  GemmJob job{};
  job.a_row_pitch = g.stride_h * in.row_pitch;
  job.a_pixel_pitch = g.stride_w * in.pixel_pitch;
  job.joined_rows = gather ? 0 : p.joined_rows;
  job.run_bytes = job.joined_rows > 0                                      ? g.kernel_w * p.block_in
                  : gather || runs_per_row == 1 || panel.header.blocks > 1 ? p.run_bytes
                                                                           : p.block_in;
  job.b = panel.weights + panel_start(panel.layout, p, block, index);
  job.width = panels_width(panel.layout, p, index, index + count);
  job.depth = p.runs * p.run_bytes;
  job.n = smaller(count * nr, p.block_out - index * nr);
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
  prepare_weights(job, panel, pixels);

  if (size.n * size.h == 1) {
    job.h = 1;
    job.w = last - first;
    if (gather) {
      gathered(job, channel, block, 0, 0, first);
      return item + count;
    }
    job.a = first_tap(in, g, 0) + in_channel + first * job.a_pixel_pitch;
    job.run_offset = run_offset.data();
    job.runs = static_cast<int64_t>(run_offset.size());
    if (skip_halo) {
      const KernelRows k = inner_rows(g, in.h, 0);
      job.first_run = k.first * runs_per_row;
      job.run_offset += job.first_run;
      job.b += run_start(job, k);
      job.runs = (k.last - k.first) * runs_per_row;
    }
    send(job, channel, 0, 0, first);
    return item + count;
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
  return item + count;
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
    job.b = b + run_start(job, k);
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
  const int64_t rows = larger(1, p.joined_rows);  // of a run
  thread_local Scratch memory;
  uint8_t* copy = memory.get(job.w * pixel_bytes);
  const uint8_t* source = first_tap(in, g, n) + block * p.block_in + y * job.a_row_pitch;
  for (int64_t i = 0; i < job.w; ++i) {
    for (int64_t r = 0; r < g.kernel_h; ++r) {
      uint8_t* to =
          copy + i * pixel_bytes + r / rows * p.run_bytes + r % rows * g.kernel_w * p.block_in;
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
    const FloatImage& out = *sink.f32;
    float* to =
        out.data + n * out.stride_n + y * out.stride_h + x * out.stride_w + channel * out.stride_c;
    run_floats(job, panel.table.gemm_u8s8_f32, out, to, job.n, job.a_row_pitch);
    return;
  }
  aim(job, sink, channel, n, y, x);
  const Image& out = *sink.u8;
  if (out.halo > 0 && job.w == size.w) {
    // The code that the halo holds now; any value, if the halo is filled later.
    job.gap_code = out.data[n * out.image_pitch - out.row_pitch - out.pixel_pitch];
  }
  panel.table.gemm_u8s8_u8(job);
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

}  // namespace

void prepare_weights(GemmJob& job, const Panel& panel, int64_t pixels) {
  const GemmTable& table = panel.table;
  job.narrow = panel.header.bits <= 7;
  if (table.split_panel == nullptr || job.narrow || pixels < kSplitPixels) return;
  thread_local Scratch memory;
  job.split = memory.get(table.split_bytes(job.width, job.depth));
  table.split_panel(job.b, job.width, job.depth, job.split);
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

  Dense dense{in, g, panel, e, sink, size, false, false, 1, {}};
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
    for (int64_t i = begin; i < end;) i = dense.run_items(units, bands, i, end);
  });
}

}  // namespace octavo

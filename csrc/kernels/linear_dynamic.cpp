// Linear layers whose rows are quantized by the thread that multiplies them: with the range of each
// row, or with given parameters. Called by ops/ and recurrent.cpp.
#include <cmath>

#include "product.h"
#include "quantize_rule.h"

namespace octavo {
namespace {

/// Rows quantized at a time.
constexpr int64_t kRowsBytes = 640 << 10;

/// A block of quantized rows in the calling thread's scratch.
struct QuantizedRows {
  uint8_t* codes;
  int64_t pitch;
  float* scale;
  int32_t* zero_point;
};

QuantizedRows quantize_rows(const ElementTable& table, const float* x, int64_t rows, int64_t k,
                            int64_t ldx, const QuantParams* fixed) {
  QuantizedRows q;
  // A pitch of a multiple of 1 KiB would put the rows of a tile into few sets of L1.
  q.pitch = round_up(k, 64);
  if (q.pitch % 1024 == 0) q.pitch += 64;
  thread_local Scratch codes, params;
  q.codes = codes.get(rows * q.pitch);
  q.scale = reinterpret_cast<float*>(params.get(rows * 8));
  q.zero_point = reinterpret_cast<int32_t*>(q.scale + rows);
  for (int64_t i = 0; i < rows; ++i) {
    const QuantParams p = row_params(table, x + i * ldx, k, fixed);
    table.quantize_f32_u8(x + i * ldx, k, rule_of(p), q.codes + i * q.pitch);
    q.scale[i] = p.scale;
    q.zero_point[i] = p.zero_point;
  }
  return q;
}

/// Rows times panels [index, last).
void multiply_rows(const QuantizedRows& q, int64_t rows, const Panel& panel, int64_t index,
                   int64_t last, float* y, int64_t ldy) {
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
  job.width = panels_width(panel.layout, p, index, last);
  job.depth = p.run_bytes;
  job.n = smaller((last - index) * nr, p.block_out - channel);
  job.colsum = panel.colsum + channel;
  job.scale = panel.scale + channel;
  job.offset = panel.bias + channel;
  job.row_scale = q.scale;
  job.row_zero = q.zero_point;
  job.out_f32 = y + channel;
  job.f32_pixel_pitch = ldy;
  job.f32_row_pitch = rows * ldy;
  job.gap_code = -1;
  prepare_weights(job, panel, rows);
  panel.table.gemm_u8s8_rows(job);
}

void long_rows(const float* x, int64_t m, int64_t k, int64_t ldx, const QuantParams* fixed,
               const Panel& panel, float* y, int64_t ldy) {
  parallel_for(0, m, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const QuantizedRows q = quantize_rows(panel.kernels.element, x + i * ldx, 1, k, ldx, fixed);
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

void linear(const float* x, int64_t m, int64_t k, int64_t ldx, const QuantParams* fixed,
            const void* panel, float* y, int64_t ldy) {
  const Panel p(panel);
  const int64_t columns = p.geometry.panels;
  if (m * p.header.out_channels == 0) return;
  const int64_t macs = m * k * p.header.out_channels;
  add_integer_macs(macs);
  if (k > kLongestSum) {
    long_rows(x, m, k, ldx, fixed, p, y, ldy);
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
    for (int64_t i = begin; i < end;) {
      const int64_t band = i / columns, first = m * band / bands, last = m * (band + 1) / bands;
      if (band != held) {
        q = quantize_rows(p.kernels.element, x + first * ldx, last - first, k, ldx, fixed);
        held = band;
      }
      const int64_t index = i % columns;
      const int64_t count = panels_at_once(p.table, columns - index, end - i);
      multiply_rows(q, last - first, p, index, index + count, y + first * ldy, ldy);
      i += count;
    }
  });
}

}  // namespace

void linear_dynamic(const float* x, int64_t m, int64_t k, int64_t ldx, const void* panel, float* y,
                    int64_t ldy) {
  linear(x, m, k, ldx, nullptr, panel, y, ldy);
}

void linear_static(const float* x, int64_t m, int64_t k, int64_t ldx, QuantParams params,
                   const void* panel, float* y, int64_t ldy) {
  linear(x, m, k, ldx, &params, panel, y, ldy);
}

}  // namespace octavo

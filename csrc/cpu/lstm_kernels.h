// LSTM on the CPU: the one body of ../lstm.h, compiled for each ISA.
//
// A forward tile is some rows times the four gates of one vector of units (a 4-gate panel): bias,
// input product (fused, or projected ahead into `gates`), recurrent product, then the pointwise
// part on registers. Backward walks the steps the other way: a tile is some rows times up to four
// vectors of units; the recurrent product of the step after it gives grad_h, and the pointwise part
// leaves the step's gate gradients in scratch, from which three large products make the remaining
// gradients.
#pragma once

#include "cpu/activations.h"
#include "cpu/sequence.h"
#include "lstm.h"
#include "pointwise.h"

namespace rnnfast {
namespace {

template <class T>
void lstm_forward(const Runtime& runtime, const LstmForward& a) {
  constexpr int width = Vector<T>::width;
  const int64_t steps = a.seq_len, batch = a.batch, inputs = a.input_size, hidden = a.hidden_size;
  const T* h_0 = static_cast<const T*>(a.h_0);
  const T* c_0 = static_cast<const T*>(a.c_0);
  T* h_n = static_cast<T*>(a.h_n);
  T* c_n = static_cast<T*>(a.c_n);
  if (steps == 0) {
    copy_rows(matrix_rows(h_0, hidden), h_n, batch, hidden);
    copy_rows(matrix_rows(c_0, hidden), c_n, batch, hidden);
    return;
  }

  const bool keep = a.gates != nullptr;
  const Panels<T> panels(hidden, 4);
  const Walk walk(runtime, steps, batch, panels.packed_size(hidden) * sizeof(T),
                  panels.packed_size(inputs) * sizeof(T), 4 * hidden * sizeof(T));
  const Matrix<T> weight_ih =
      matrix_by_columns(runtime, panels, static_cast<const T*>(a.weight_ih), inputs, steps == 1);
  const Matrix<T> weight_hh =
      matrix_by_columns(runtime, panels, static_cast<const T*>(a.weight_hh), hidden, steps == 1);
  const T* bias = packed_bias(runtime, panels, a.bias_ih, a.bias_hh);

  const Sequence<const T> x = input_of<T>(a);
  const Sequence<T> h = like_output<T>(a, static_cast<T*>(a.output), 1);
  // Without backward to serve, cells live in c_n alone and projected gates in a chunk of scratch.
  const int64_t gates_row = 4 * hidden;
  const Sequence<T> cells = keep ? like_output<T>(a, static_cast<T*>(a.cells), 1)
                                 : Sequence<T>(c_n, 0, hidden, steps, batch, false);
  const Sequence<T> gates = keep ? like_output<T>(a, static_cast<T*>(a.gates), 4)
                                 : gates_chunk<T>(runtime, walk, batch, gates_row);

  const auto body = [&](int64_t s, int, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                        int64_t panel_end) {
    const int64_t at = keep ? s : s % walk.chunk;  // where step s stands in `gates`
    if (!walk.fused && s % walk.chunk == 0)
      project(x, s, gates, at, min_of(walk.chunk, steps - s), row_begin, row_end, panels,
              panel_begin, panel_end, weight_ih, bias);
    const Rows<const T> x_rows = x.step_rows(s);
    const Rows<T> gates_rows = gates.step_rows(at);
    Rows<const T> h_prev = matrix_rows(h_0, hidden), c_prev = matrix_rows(c_0, hidden);
    if (s > 0) {
      h_prev.base = h.at(s - 1, 0), h_prev.inner_stride = h.row;
      c_prev.base = cells.at(s - 1, 0), c_prev.inner_stride = cells.row;
    }
    for (int64_t p = panel_begin; p < panel_end; ++p) {
      const int64_t unit = panels.column(p, 0), valid = panels.valid(p, 0);
      for_each_tile(row_begin, row_end, 4, [&](int64_t first, int64_t count) {
        Tile<T> tile;
        if (walk.fused) {
          fill_tile(panels, p, count, bias, tile.at);
          weight_ih.accumulate(x_rows, 0, first, count, panels, p, tile.at);
        } else {
          load_tile(panels, p, gates_rows, first, count, tile.at);
        }
        weight_hh.accumulate(h_prev, 0, first, count, panels, p, tile.at);
        for (int64_t m = 0; m < count; ++m) {
          const int64_t n = first + m;
          const T* pre = tile.at + m * 4 * width;
          LstmGates<Vec<T>> gate{load(pre), load(pre + width), load(pre + 2 * width),
                                 load(pre + 3 * width)};
          Vec<T> c_t, h_t;
          lstm_pointwise(gate, load_first(c_prev[n] + unit, valid), c_t, h_t);
          store_first(cells.at(s, n) + unit, c_t, valid);
          store_first(h.at(s, n) + unit, h_t, valid);
          if (keep) {
            T* out = gates_rows[n] + unit;
            store_first(out, gate.i, valid);
            store_first(out + hidden, gate.f, valid);
            store_first(out + 2 * hidden, gate.g, valid);
            store_first(out + 3 * hidden, gate.o, valid);
          }
        }
      });
    }
  };
  for_each_step(runtime, steps, batch, walk.share_rows, 1, &panels.count,
                product_work(batch, inputs + hidden, 4 * hidden), body);

  copy_rows<T>(matrix_rows<const T>(h.at(steps - 1, 0), h.row), h_n, batch, hidden);
  if (keep)
    copy_rows<T>(matrix_rows<const T>(cells.at(steps - 1, 0), cells.row), c_n, batch, hidden);
}

template <class T>
void lstm_backward(const Runtime& runtime, const LstmBackward& a) {
  const int64_t steps = a.seq_len, batch = a.batch, inputs = a.input_size, hidden = a.hidden_size;
  const int64_t gates_row = 4 * hidden, rows = steps * batch;
  const T* h_0 = static_cast<const T*>(a.h_0);
  const T* c_0 = static_cast<const T*>(a.c_0);
  T* grad_h_0 = static_cast<T*>(a.grad_h_0);
  T* grad_c = static_cast<T*>(a.grad_c_0);  // the running gradient of c_t ends as that of c_0
  const T* grad_h_n = static_cast<const T*>(a.grad_h_n);
  set_or_zero(static_cast<const T*>(a.grad_c_n), grad_c, batch * hidden);
  if (steps == 0) set_or_zero(grad_h_n, grad_h_0, batch * hidden);

  const Sequence<const T> h = like_output<const T>(a, static_cast<const T*>(a.output), 1);
  const Sequence<const T> cells = like_output<const T>(a, static_cast<const T*>(a.cells), 1);
  const Sequence<const T> gates = like_output<const T>(a, static_cast<const T*>(a.gates), 4);
  const Sequence<const T> grad_output = grad_output_of<T>(a);
  T* grad_gates = allocate<T>(runtime, rows * gates_row);  // processing order
  const Rows<const T> grad_rows = matrix_rows<const T>(grad_gates, gates_row);

  const Panels<T> panels(hidden, 1, runtime.num_threads);
  const Matrix<T> weight_hh =
      matrix_by_rows(runtime, panels, static_cast<const T*>(a.weight_hh), gates_row, steps == 1);
  const BackwardProduct<T> recurrent{&weight_hh, 0, 1};
  const auto epilogue = [&](int64_t turn, int64_t s, int, int64_t n, int64_t unit, int64_t valid,
                            Vec<T> grad_h) {
    if (s < 0) return store_first(grad_h_0 + n * hidden + unit, grad_h, valid);
    if (grad_output.base) grad_h = grad_h + load_first(grad_output.at(s, n) + unit, valid);
    if (turn == 0 && grad_h_n) grad_h = grad_h + load_first(grad_h_n + n * hidden + unit, valid);
    const T* gate = gates.at(s, n) + unit;
    const LstmGates<Vec<T>> activated{load_first(gate, valid), load_first(gate + hidden, valid),
                                      load_first(gate + 2 * hidden, valid),
                                      load_first(gate + 3 * hidden, valid)};
    const T* c_prev = s > 0 ? cells.at(s - 1, n) : c_0 + n * hidden;
    T* grad_c_at = grad_c + n * hidden + unit;
    Vec<T> grad_c_t = load_first<T>(grad_c_at, valid);
    const LstmGates<Vec<T>> grad_pre =
        lstm_pointwise_backward(activated, load_first(cells.at(s, n) + unit, valid),
                                load_first(c_prev + unit, valid), grad_h, grad_c_t);
    store_first(grad_c_at, grad_c_t, valid);
    T* out = grad_gates + (s * batch + n) * gates_row + unit;
    store_first(out, grad_pre.i, valid);
    store_first(out + hidden, grad_pre.f, valid);
    store_first(out + 2 * hidden, grad_pre.g, valid);
    store_first(out + 3 * hidden, grad_pre.o, valid);
  };
  if (steps > 0) walk_backward(runtime, steps, batch, panels, grad_rows, &recurrent, 1, epilogue);

  if (a.grad_input) {
    const Panels<T> columns(inputs, 1);
    input_gradient(runtime, a, grad_rows, columns,
                   matrix_by_rows(runtime, columns, static_cast<const T*>(a.weight_ih), gates_row,
                                  steps == 1));
  }
  const GradientPart<T> parts[] = {
      {input_of<T>(a).rows_from(0), inputs, static_cast<T*>(a.grad_weight_ih)},
      {previous_rows(h, h_0, hidden), hidden, static_cast<T*>(a.grad_weight_hh)}};
  if (a.grad_weight_hh || a.grad_bias)
    weight_gradient(runtime, grad_rows, rows, gates_row, parts, a.grad_weight_hh ? 2 : 0,
                    static_cast<T*>(a.grad_bias));
}

}  // namespace
}  // namespace rnnfast

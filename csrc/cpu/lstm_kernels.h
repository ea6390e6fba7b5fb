// LSTM on the CPU: the one body of ../lstm.h, compiled for each ISA.
//
// A forward tile is some rows times the four gates of one vector of units (a 4-gate panel): bias,
// input product (fused, or projected ahead into `gates`), recurrent product, then the pointwise
// part on registers. Backward walks the steps the other way: a tile is some rows times up to four
// vectors of units; the recurrent product of the step after it gives grad_h, and the pointwise part
// leaves the step's gate gradients in scratch, from which three large products make the remaining
// gradients. A projection of h is a second phase of each step, in both directions.
#pragma once

#include "cpu/activations.h"
#include "cpu/sequence.h"
#include "cpu/weight_gradient.h"
#include "lstm.h"
#include "pointwise.h"

namespace rnnfast {
namespace {

// A layer's weights as forward reads them. Plain data, so that it may stand in the host's memory.
template <class P>
struct LstmWeights {
  Panels<Sum<P>> panels, projected;
  Matrix<P> weight_ih, weight_hh, weight_hr;
  const Sum<P>* bias;
};

// `once`: for one step only.
template <class P>
LstmWeights<P> lstm_weights(const Runtime& runtime, const LstmForward& a, bool once) {
  typedef Sum<P> T;
  const Panels<T> panels(a.hidden_size, 4);
  const Panels<T> projected(a.proj_size, 1, runtime.num_threads);
  const auto matrix = [&](const Panels<T>& columns, const void* weight, int64_t depth) {
    return matrix_by_columns<P>(runtime, columns, {weight, a.storage}, depth, once);
  };
  return {panels,
          projected,
          matrix(panels, a.weight_ih, a.input_size),
          matrix(panels, a.weight_hh, a.proj_size ? a.proj_size : a.hidden_size),
          a.proj_size ? matrix(projected, a.weight_hr, a.hidden_size) : Matrix<P>{},
          packed_bias<T>(runtime, panels, {a.bias_ih, a.storage}, {a.bias_hh, a.storage})};
}

template <class P>
void* lstm_pack(const Runtime& runtime, const LstmForward& a) {
  return kept(runtime, lstm_weights<P>(runtime, a, false));
}

template <class P>
void lstm_forward(const Runtime& runtime, const LstmForward& a) {
  typedef Sum<P> T;
  constexpr int width = Vector<T>::width;
  const int64_t batch = a.batch, inputs = a.input_size, hidden = a.hidden_size;
  const int64_t size = a.proj_size ? a.proj_size : hidden;  // of h
  const Steps steps = steps_of(runtime, a);
  const T* h_0 = Stored<T>(a.h_0, a.storage).values(runtime, batch * size);
  const T* c_0 = Stored<T>(a.c_0, a.storage).values(runtime, batch * hidden);
  const Result<T> h_last(runtime, a.h_n, a.storage, batch * size);
  const Result<T> c_last(runtime, a.c_n, a.storage, batch * hidden);
  T* states = computed_states<T>(runtime, a, steps, size);
  T* c_n = c_last.values;

  const bool keep = a.gates != nullptr, keep_cells = a.cells != nullptr;
  const LstmWeights<P> weights = a.packed ? *static_cast<const LstmWeights<P>*>(a.packed)
                                          : lstm_weights<P>(runtime, a, steps.single());
  const Panels<T>&panels = weights.panels, &projected = weights.projected;
  const Matrix<P>&weight_ih = weights.weight_ih, &weight_hh = weights.weight_hh;
  const T* bias = weights.bias;
  const Walk walk(
      runtime, steps.count, batch,
      (panels.packed_size(groups<P>(size)) + projected.packed_size(groups<P>(hidden))) * sizeof(T),
      panels.packed_size(groups<P>(inputs)) * sizeof(T), 4 * hidden * sizeof(T));
  // Of one step.
  P* unprojected = a.proj_size ? allocate<P>(runtime, batch * hidden) : nullptr;

  const Sequence<const P> x = input_as<P>(runtime, a, steps);
  const Sequence<T> h = like_output<T>(a, steps, states, size, size);
  const PreviousRows<T> h_before(runtime, steps, like_output<const T>(a, steps, states, size, size),
                                 h_0, size);
  const PreviousOperands<P> h_operands(runtime, h_before, h_0, output_of<T>(a, steps), batch, size);
  // Unless they are to be kept, cells live in c_n alone and projected gates in a chunk of scratch.
  const Sequence<T> cells = like_output<T>(a, steps, static_cast<T*>(a.cells), size, hidden);
  const PreviousRows<T> c_before(
      runtime, steps, like_output<const T>(a, steps, static_cast<const T*>(a.cells), size, hidden),
      c_0, hidden);
  if (!keep_cells) set_or_zero(c_0, c_n, batch * hidden);
  const Sequence<T> all_gates =
      keep ? like_output<T>(a, steps, static_cast<T*>(a.gates), size, 4 * hidden)
           : gates_scratch<T>(runtime, walk, steps, 4 * hidden);

  const auto gates_tile = [&](int64_t s, const Sequence<T>& gates, const PanelPlace<T>& place,
                              int64_t first, int64_t count) {
    const int64_t p = place.p;
    const int64_t unit = panels.column(p, 0), valid = panels.valid(p, 0);
    const Rows<T> gates_rows = gates.step_rows(s);
    const Rows<const T> c_prev =
        keep_cells ? c_before.of_step(s) : matrix_rows<const T>(c_n, hidden);
    const Rows<T> c_rows = keep_cells ? cells.step_rows(s) : matrix_rows(c_n, hidden);
    const Rows<T> h_rows = h.step_rows(s);
    Tile<T> tile;
    if (walk.fused) {
      weight_ih.multiply(x.step_rows(s), 0, first, count, place,
                         {bias + panels.first(p) * width, 0}, tile.at);
    } else {
      load_tile(panels, p, gates_rows, first, count, tile.at);
    }
    weight_hh.accumulate(h_operands.of_step(s), 0, first, count, place, tile.at);
    const auto activate = [&](int64_t m) __attribute__((always_inline)) {
      const int64_t n = first + m;
      T* at = tile.at + m * 4 * width;
      LstmGates<Vec<T>> gate{load(at), load(at + width), load(at + 2 * width),
                             load(at + 3 * width)};
      const Vec<T> c_t = lstm_cell(gate, load_first(c_prev[n] + unit, valid));
      store_first(c_rows[n] + unit, c_t, valid);
      store(at, gate.o);
      store(at + width, c_t);
      if (!keep) return;
      T* out = gates_rows[n] + unit;
      store_first(out, gate.i, valid);
      store_first(out + hidden, gate.f, valid);
      store_first(out + 2 * hidden, gate.g, valid);
      store_first(out + 3 * hidden, gate.o, valid);
    };
    const auto give = [&](int64_t m) __attribute__((always_inline)) {
      const int64_t n = first + m;
      const T* at = tile.at + m * 4 * width;
      const Vec<T> h_t = lstm_hidden(load(at), load(at + width));
      if (unprojected) {
        store_operand(unprojected + n * hidden + unit, h_t, valid);
      } else {
        store_first(h_rows[n] + unit, h_t, valid);
        h_operands.set(s, n, unit, h_t, valid);
      }
    };
    for_each_row(count, keep, activate, give);
  };
  const auto body = [&](int64_t s, int phase, int64_t row_begin, int64_t row_end,
                        const PanelRange& range) {
    const Sequence<T> gates = keep ? all_gates : chunk_of(all_gates, walk, steps, s);
    if (phase == 0 && !walk.fused && s % walk.chunk == 0)
      project(walk, steps, s, x, gates, row_begin, row_end, panels, range, weight_ih, bias);
    row_end = min_of(row_end, steps.rows(s));
    if (phase == 0) {
      range.for_each(panels, [&](const PanelPlace<T>& place) {
        for_each_group(row_begin, row_end, [&](int64_t first, int64_t count) {
          gates_tile(s, gates, place, first, count);
        });
      });
    } else {
      multiply<P, T>(matrix_rows<const P>(unprojected, hidden), h.step_rows(s), row_begin, row_end,
                     projected, range, weights.weight_hr, nullptr);
      h_operands.set_panels(s, h.step_rows(s), row_begin, row_end, projected, range);
    }
  };
  const Panels<T>* shared[] = {&panels, &projected};
  const int64_t work =
      product_work(batch, inputs + size, 4 * hidden) + product_work(batch, hidden, a.proj_size);
  for_each_step(runtime, steps.count, batch, walk.share_rows, a.proj_size ? 2 : 1, shared, work,
                body);

  copy_last_states(steps, h, h_0, h_last.values, size);
  if (keep_cells) copy_last_states(steps, cells, c_0, c_n, hidden);
  h_last.write();
  c_last.write();
}

template <class P>
void lstm_backward(const Runtime& runtime, const LstmBackward& a) {
  typedef Sum<P> T;
  const int64_t batch = a.batch, inputs = a.input_size, hidden = a.hidden_size;
  const int64_t size = a.proj_size ? a.proj_size : hidden;  // of h
  const int64_t gates_row = 4 * hidden;
  const Steps steps = steps_of(runtime, a);
  const int64_t rows = steps.total();
  const auto values = [&](const void* state, int64_t count) {
    return Stored<T>(state, a.storage).values(runtime, count);
  };
  const T *h_0 = values(a.h_0, batch * size), *c_0 = values(a.c_0, batch * hidden);
  const Result<T> grad_h_first(runtime, a.grad_h_0, a.storage, batch * size);
  const Result<T> grad_c_first(runtime, a.grad_c_0, a.storage, batch * hidden);
  T* grad_h_0 = grad_h_first.values;
  T* grad_c = grad_c_first.values;  // the running gradient of c_t ends as that of c_0
  const T* grad_h_n = values(a.grad_h_n, batch * size);
  set_or_zero(values(a.grad_c_n, batch * hidden), grad_c, batch * hidden);
  pass_idle_gradient(steps, grad_h_n, grad_h_0, size);

  const Sequence<const T> h =
      like_output<const T>(a, steps, static_cast<const T*>(a.output), size, size);
  const Sequence<const T> cells =
      like_output<const T>(a, steps, static_cast<const T*>(a.cells), size, hidden);
  const Sequence<const T> gates =
      like_output<const T>(a, steps, static_cast<const T*>(a.gates), size, gates_row);
  const PreviousRows<T> h_before(runtime, steps, h, h_0, size);
  const PreviousRows<T> c_before(runtime, steps, cells, c_0, hidden);
  const StoredSequence<T> grad_output = grad_output_of<T>(a, steps);
  const Sequence<const T> grad_cells{static_cast<const T*>(a.grad_cells), a.grad_cells_time,
                                     a.grad_cells_row, steps, a.reverse != 0};
  P* grad_gates = allocate<P>(runtime, rows * gates_row);  // processing order
  const Rows<const P> grad_rows = matrix_rows<const P>(grad_gates, gates_row);
  // Of a projection, in processing order too: the gradient of what it gave, and what it was given.
  P* grad_projected = a.proj_size ? allocate<P>(runtime, rows * size) : nullptr;
  T* unprojected = a.proj_size ? allocate<T>(runtime, rows * hidden) : nullptr;
  const Rows<const P> grad_projected_rows = matrix_rows<const P>(grad_projected, size);

  const bool once = steps.single();
  const Panels<T> states(size, 1, runtime.num_threads), units(hidden, 1, runtime.num_threads);
  const Matrix<P> weight_hh =
      matrix_by_rows<P>(runtime, states, {a.weight_hh, a.storage}, gates_row, once);
  Matrix<P> weight_hr{};
  if (a.proj_size)
    weight_hr = matrix_by_rows<P>(runtime, units, {a.weight_hr, a.storage}, size, once);
  const BackwardProduct<P> products[] = {{&states, &weight_hh, grad_rows, 0, 1},
                                         {&units, &weight_hr, grad_projected_rows, 0, 0}};
  const auto epilogue = [&](int64_t s, int phase, int64_t n) {
    const bool ended = s < 0;
    const int64_t row = ended ? 0 : steps.first(s) + n;
    const T* const gate = ended ? nullptr : gates.at(s, n);
    const T* const cell = ended ? nullptr : cells.at(s, n);
    const T* const cell_before = ended ? nullptr : c_before.of_step(s)[n];
    const T* const cell_gradient = ended || !grad_cells.base ? nullptr : grad_cells.at(s, n);
    const Stored<T> given = ended ? Stored<T>(nullptr) : grad_output.row(s, n);
    const bool is_last = !ended && grad_h_n && n >= steps.rows(s + 1);
    const T* const last = is_last ? grad_h_n + n * size : nullptr;
    T* const grad_c_row = grad_c + n * hidden;
    return [=](int64_t unit, auto valid, Vec<T> grad_h) __attribute__((always_inline)) {
      if (phase == 0) {
        if (ended) return store_first(grad_h_0 + n * size + unit, grad_h, valid);
        if (given.data) grad_h = grad_h + given.load(unit, valid);
        if (last) grad_h = grad_h + load_first(last + unit, valid);
        if (grad_projected) return store_operand(grad_projected + row * size + unit, grad_h, valid);
      }
      const LstmGates<Vec<T>> activated{
          load_first(gate + unit, valid), load_first(gate + hidden + unit, valid),
          load_first(gate + 2 * hidden + unit, valid), load_first(gate + 3 * hidden + unit, valid)};
      const Vec<T> c_t = load_first(cell + unit, valid);
      Vec<T> grad_c_t = load_first<T>(grad_c_row + unit, valid);
      if (cell_gradient) grad_c_t = grad_c_t + load_first(cell_gradient + unit, valid);
      const LstmGates<Vec<T>> grad_pre = lstm_pointwise_backward(
          activated, c_t, load_first(cell_before + unit, valid), grad_h, grad_c_t);
      store_first(grad_c_row + unit, grad_c_t, valid);
      P* out = grad_gates + row * gates_row + unit;
      store_operand(out, grad_pre.i, valid);
      store_operand(out + hidden, grad_pre.f, valid);
      store_operand(out + 2 * hidden, grad_pre.g, valid);
      store_operand(out + 3 * hidden, grad_pre.o, valid);
      if (unprojected)
        store_first(unprojected + row * hidden + unit, activated.o * tanh(c_t), valid);
    };
  };
  walk_backward(runtime, steps, products, a.proj_size ? 2 : 1, epilogue);

  if (a.grad_input) {
    const Panels<T> columns(inputs, 1);
    input_gradient<P>(
        runtime, a, steps, grad_rows, columns,
        matrix_by_rows<P>(runtime, columns, {a.weight_ih, a.storage}, gates_row, once));
  }
  if (a.grad_weight_hh || a.grad_bias) {
    const Result<T> grad_bias(runtime, a.grad_bias, a.storage, gates_row);
    const Rows<const T> x = input_as<T>(runtime, a, steps).all_rows(runtime, steps);
    const GradientPart<T> parts[] = {{x, inputs, a.grad_weight_ih, a.storage},
                                     {h_before.all, size, a.grad_weight_hh, a.storage}};
    weight_gradient<P>(runtime, grad_rows, rows, gates_row, parts, a.grad_weight_hh ? 2 : 0,
                       grad_bias.values);
    grad_bias.write();
  }
  const GradientPart<T> projection[] = {
      {matrix_rows<const T>(unprojected, hidden), hidden, a.grad_weight_hr, a.storage}};
  if (a.proj_size && a.grad_weight_hr)
    weight_gradient<P, T>(runtime, grad_projected_rows, rows, size, projection, 1, nullptr);
  grad_h_first.write();
  grad_c_first.write();
}

}  // namespace
}  // namespace rnnfast

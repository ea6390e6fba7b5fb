// Plain RNN on the CPU: the one body of ../rnn.h, compiled for each ISA.
//
// A tile is some rows times up to four vectors of units. Where the input product is projected ahead
// it goes straight into `output`, which the step then overwrites with its state.
#pragma once

#include "cpu/activations.h"
#include "cpu/sequence.h"
#include "cpu/weight_gradient.h"
#include "rnn.h"

namespace rnnfast {
namespace {

// A layer's weights as forward reads them. Plain data, so that it may stand in the host's memory.
template <class P>
struct RnnWeights {
  Panels<Sum<P>> panels;
  Matrix<P> weight_ih, weight_hh;
  const Sum<P>* bias;
};

// `once`: for one step only.
template <class P>
RnnWeights<P> rnn_weights(const Runtime& runtime, const RnnForward& a, bool once) {
  typedef Sum<P> T;
  const Panels<T> panels(a.hidden_size, 1, runtime.num_threads);
  const auto matrix = [&](const void* weight, int64_t depth) {
    return matrix_by_columns<P>(runtime, panels, {weight, a.storage}, depth, once);
  };
  return {panels, matrix(a.weight_ih, a.input_size), matrix(a.weight_hh, a.hidden_size),
          packed_bias<T>(runtime, panels, {a.bias_ih, a.storage}, {a.bias_hh, a.storage})};
}

template <class P>
void* rnn_pack(const Runtime& runtime, const RnnForward& a) {
  return kept(runtime, rnn_weights<P>(runtime, a, false));
}

template <class P>
void rnn_forward(const Runtime& runtime, const RnnForward& a) {
  typedef Sum<P> T;
  constexpr int width = Vector<T>::width;
  const int64_t batch = a.batch, inputs = a.input_size, hidden = a.hidden_size;
  const Steps steps = steps_of(runtime, a);
  const T* h_0 = Stored<T>(a.h_0, a.storage).values(runtime, batch * hidden);
  const Result<T> h_last(runtime, a.h_n, a.storage, batch * hidden);
  T* states = computed_states<T>(runtime, a, steps, hidden);

  const RnnWeights<P> weights = a.packed ? *static_cast<const RnnWeights<P>*>(a.packed)
                                         : rnn_weights<P>(runtime, a, steps.single());
  const Panels<T>& panels = weights.panels;
  const Matrix<P>&weight_ih = weights.weight_ih, &weight_hh = weights.weight_hh;
  const T* bias = weights.bias;
  const Walk walk(runtime, steps.count, batch, panels.packed_size(groups<P>(hidden)) * sizeof(T),
                  panels.packed_size(groups<P>(inputs)) * sizeof(T), hidden * sizeof(T));
  const Sequence<const P> x = input_as<P>(runtime, a, steps);
  const Sequence<T> h = like_output<T>(a, steps, states, hidden, hidden);
  const PreviousRows<T> h_before(
      runtime, steps, like_output<const T>(a, steps, states, hidden, hidden), h_0, hidden);
  const PreviousOperands<P> h_operands(runtime, h_before, h_0, output_of<T>(a, steps), batch,
                                       hidden);

  const auto body = [&](int64_t s, int, int64_t row_begin, int64_t row_end,
                        const PanelRange& range) {
    if (!walk.fused && s % walk.chunk == 0)
      project(walk, steps, s, x, h, row_begin, row_end, panels, range, weight_ih, bias);
    row_end = min_of(row_end, steps.rows(s));
    const Rows<const P> x_rows = x.step_rows(s), h_prev = h_operands.of_step(s);
    const Rows<T> h_rows = h.step_rows(s);
    range.for_each(panels, [&](const PanelPlace<T>& place) {
      const int64_t p = place.p, vectors = panels.vectors(p);
      for_each_group(row_begin, row_end, [&](int64_t first, int64_t count) {
        Tile<T> tile;
        if (walk.fused) {
          weight_ih.multiply(x_rows, 0, first, count, place, {bias + panels.first(p) * width, 0},
                             tile.at);
        } else {
          load_tile(panels, p, h_rows, first, count, tile.at);
        }
        weight_hh.accumulate(h_prev, 0, first, count, place, tile.at);
        for (int64_t m = 0; m < count; ++m) {
          for (int64_t v = 0; v < vectors; ++v) {
            const Vec<T> pre = load(tile.at + (m * vectors + v) * width);
            // Written so that NaN, for which every comparison is false, stays.
            const Vec<T> state = a.relu ? (pre <= Vec<T>{} ? Vec<T>{} : pre) : tanh(pre);
            const int64_t unit = panels.column(p, v), valid = panels.valid(p, v);
            store_first(h_rows[first + m] + unit, state, valid);
            h_operands.set(s, first + m, unit, state, valid);
          }
        }
      });
    });
  };
  const Panels<T>* shared = &panels;
  for_each_step(runtime, steps.count, batch, walk.share_rows, 1, &shared,
                product_work(batch, inputs + hidden, hidden), body);
  copy_last_states(steps, h, h_0, h_last.values, hidden);
  h_last.write();
}

template <class P>
void rnn_backward(const Runtime& runtime, const RnnBackward& a) {
  typedef Sum<P> T;
  const int64_t inputs = a.input_size, hidden = a.hidden_size;
  const int64_t state_count = a.batch * hidden;
  const Steps steps = steps_of(runtime, a);
  const int64_t rows = steps.total();
  const T* h_0 = Stored<T>(a.h_0, a.storage).values(runtime, state_count);
  const T* grad_h_n = Stored<T>(a.grad_h_n, a.storage).values(runtime, state_count);
  const Result<T> grad_h_first(runtime, a.grad_h_0, a.storage, state_count);
  T* grad_h_0 = grad_h_first.values;
  pass_idle_gradient(steps, grad_h_n, grad_h_0, hidden);

  const Sequence<const T> h =
      like_output<const T>(a, steps, static_cast<const T*>(a.output), hidden, hidden);
  const PreviousRows<T> h_before(runtime, steps, h, h_0, hidden);
  const StoredSequence<T> grad_output = grad_output_of<T>(a, steps);
  P* grad_pre = allocate<P>(runtime, rows * hidden);  // processing order
  const Rows<const P> grad_rows = matrix_rows<const P>(grad_pre, hidden);

  const bool once = steps.single();
  const Panels<T> panels(hidden, 1, runtime.num_threads);
  const Matrix<P> weight_hh =
      matrix_by_rows<P>(runtime, panels, {a.weight_hh, a.storage}, hidden, once);
  const BackwardProduct<P> recurrent{&panels, &weight_hh, grad_rows, 0, 1};
  const bool relu = a.relu;
  const auto epilogue = [&](int64_t s, int, int64_t n) {
    const bool ended = s < 0;
    const T* const state_row = ended ? nullptr : h.at(s, n);
    const Stored<T> given = ended ? Stored<T>(nullptr) : grad_output.row(s, n);
    const bool is_last = !ended && grad_h_n && n >= steps.rows(s + 1);
    const T* const last = is_last ? grad_h_n + n * hidden : nullptr;
    P* const grad_row = ended ? nullptr : grad_pre + (steps.first(s) + n) * hidden;
    return [=](int64_t unit, auto valid, Vec<T> grad_h) __attribute__((always_inline)) {
      if (ended) return store_first(grad_h_0 + n * hidden + unit, grad_h, valid);
      if (given.data) grad_h = grad_h + given.load(unit, valid);
      if (last) grad_h = grad_h + load_first(last + unit, valid);
      const Vec<T> state = load_first(state_row + unit, valid);
      const Vec<T> grad =
          relu ? (state <= Vec<T>{} ? Vec<T>{} : grad_h) : grad_h * (T(1) - state * state);
      store_operand(grad_row + unit, grad, valid);
    };
  };
  walk_backward(runtime, steps, &recurrent, 1, epilogue);

  if (a.grad_input) {
    const Panels<T> columns(inputs, 1);
    input_gradient<P>(runtime, a, steps, grad_rows, columns,
                      matrix_by_rows<P>(runtime, columns, {a.weight_ih, a.storage}, hidden, once));
  }
  grad_h_first.write();
  if (!a.grad_weight_hh && !a.grad_bias) return;
  const Result<T> grad_bias(runtime, a.grad_bias, a.storage, hidden);
  const Rows<const T> x = input_as<T>(runtime, a, steps).all_rows(runtime, steps);
  const GradientPart<T> parts[] = {{x, inputs, a.grad_weight_ih, a.storage},
                                   {h_before.all, hidden, a.grad_weight_hh, a.storage}};
  weight_gradient<P>(runtime, grad_rows, rows, hidden, parts, a.grad_weight_hh ? 2 : 0,
                     grad_bias.values);
  grad_bias.write();
}

}  // namespace
}  // namespace rnnfast

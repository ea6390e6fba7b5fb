// GRU on the CPU, both forms: the one body of ../gru.h, compiled for each ISA.
//
// reset_after: a forward tile is some rows times the three gates of one vector of units, like
// LSTM's; the input half and the recurrent half stay apart, since r scales only the latter in n.
// Reset before: a step has two phases, since n needs r * h_prev of all units: r and z first, then
// n. Backward mirrors this.
//
// Gate gradients stand in scratch as [n | r | z | hidden half of n], so that both the input product
// (n r z) and the recurrent one (r z, hidden half of n) read one contiguous run.
#pragma once

#include "cpu/activations.h"
#include "cpu/sequence.h"
#include "cpu/weight_gradient.h"
#include "gru.h"
#include "pointwise.h"

namespace rnnfast {
namespace {

// A layer's weights as forward reads them. Plain data, so that it may stand in the host's memory.
template <class P>
struct GruWeights {
  typedef Sum<P> T;
  Panels<T> all, reset_update, candidate;  // r z n, r z, n
  Matrix<P> weight_ih{};                   // all
  const T* bias_x = nullptr;
  // Of weight_hh: all where r acts after the product, the two parts where it acts before.
  Matrix<P> weight_all{}, weight_rz{}, weight_n{};
  const T *bias_all = nullptr, *bias_rz = nullptr, *bias_n = nullptr;
};

// `once`: for one step only.
template <class P>
GruWeights<P> gru_weights(const Runtime& runtime, const GruForward& a, bool once) {
  typedef Sum<P> T;
  const int64_t hidden = a.hidden_size;
  const Stored<T> bias_ih(a.bias_ih, a.storage), bias_hh(a.bias_hh, a.storage), none(nullptr);
  const auto matrix = [&](const Panels<T>& panels, const void* weight, int64_t row, int64_t depth) {
    return matrix_by_columns<P>(runtime, panels, Stored<T>(weight, a.storage).from(row * depth),
                                depth, once);
  };
  GruWeights<P> weights{{hidden, 3}, {hidden, 2}, {hidden, 1, runtime.num_threads}};
  weights.weight_ih = matrix(weights.all, a.weight_ih, 0, a.input_size);
  weights.bias_x = packed_bias(runtime, weights.all, bias_ih, none);
  if (a.reset_after) {
    weights.weight_all = matrix(weights.all, a.weight_hh, 0, hidden);
    weights.bias_all = packed_bias(runtime, weights.all, bias_hh, none);
  } else {
    weights.weight_rz = matrix(weights.reset_update, a.weight_hh, 0, hidden);
    weights.bias_rz = packed_bias(runtime, weights.reset_update, bias_hh, none);
    weights.weight_n = matrix(weights.candidate, a.weight_hh, 2 * hidden, hidden);
    weights.bias_n = packed_bias(runtime, weights.candidate, bias_hh.from(2 * hidden), none);
  }
  return weights;
}

template <class P>
void* gru_pack(const Runtime& runtime, const GruForward& a) {
  return kept(runtime, gru_weights<P>(runtime, a, false));
}

template <class P>
void gru_forward(const Runtime& runtime, const GruForward& a) {
  typedef Sum<P> T;
  constexpr int width = Vector<T>::width;
  const int64_t batch = a.batch, inputs = a.input_size, hidden = a.hidden_size;
  const Steps steps = steps_of(runtime, a);
  const T* h_0 = Stored<T>(a.h_0, a.storage).values(runtime, batch * hidden);
  const Result<T> h_last(runtime, a.h_n, a.storage, batch * hidden);
  T* states = computed_states<T>(runtime, a, steps, hidden);

  const bool keep = a.gates != nullptr, reset_after = a.reset_after;
  const GruWeights<P> weights = a.packed ? *static_cast<const GruWeights<P>*>(a.packed)
                                         : gru_weights<P>(runtime, a, steps.single());
  const Panels<T>&all = weights.all, &reset_update = weights.reset_update;
  const Panels<T>& candidate = weights.candidate;
  const T *bias_x = weights.bias_x, *bias_all = weights.bias_all, *bias_rz = weights.bias_rz;
  const T* bias_n = weights.bias_n;
  Walk walk(runtime, steps.count, batch, all.packed_size(groups<P>(hidden)) * sizeof(T),
            all.packed_size(groups<P>(inputs)) * sizeof(T), 4 * hidden * sizeof(T));
  walk.fused = walk.fused && reset_after;
  // r * h_{t-1} of one step, as the operand of the product that follows.
  P* reset_h = reset_after ? nullptr : allocate<P>(runtime, batch * hidden);

  const Sequence<const P> x = input_as<P>(runtime, a, steps);
  const Sequence<T> h = like_output<T>(a, steps, states, hidden, hidden);
  const PreviousRows<T> h_before(
      runtime, steps, like_output<const T>(a, steps, states, hidden, hidden), h_0, hidden);
  const PreviousOperands<P> h_operands(runtime, h_before, h_0, output_of<T>(a, steps), batch,
                                       hidden);
  const Sequence<T> all_gates =
      keep ? like_output<T>(a, steps, static_cast<T*>(a.gates), hidden, 4 * hidden)
           : gates_scratch<T>(runtime, walk, steps, 4 * hidden);

  const auto body = [&](int64_t s, int phase, int64_t row_begin, int64_t row_end,
                        const PanelRange& range) {
    const Sequence<T> gates = keep ? all_gates : chunk_of(all_gates, walk, steps, s);
    if (!walk.fused && phase == 0 && s % walk.chunk == 0)
      project(walk, steps, s, x, gates, row_begin, row_end, all, range, weights.weight_ih, bias_x);
    row_end = min_of(row_end, steps.rows(s));
    const Rows<const P> x_rows = x.step_rows(s), h_operand = h_operands.of_step(s);
    const Rows<const T> h_prev = h_before.of_step(s);
    const Rows<T> gates_rows = gates.step_rows(s);

    const auto reset_after_tile = [&](const PanelPlace<T>& place, int64_t first, int64_t count) {
      const int64_t p = place.p;
      const int64_t unit = all.column(p, 0), valid = all.valid(p, 0);
      Tile<T> x_tile, h_tile;
      if (walk.fused) {
        weights.weight_ih.multiply(x_rows, 0, first, count, place,
                                   {bias_x + all.first(p) * width, 0}, x_tile.at);
      } else {
        load_tile(all, p, gates_rows, first, count, x_tile.at);
      }
      weights.weight_all.multiply(h_operand, 0, first, count, place,
                                  {bias_all + all.first(p) * width, 0}, h_tile.at);
      const auto reset = [&](int64_t m) __attribute__((always_inline)) {
        T* gx = x_tile.at + m * 3 * width;
        const T* gh = h_tile.at + m * 3 * width;
        const Vec<T> r = sigmoid(load(gx) + load(gh)), hidden_n = load(gh + 2 * width);
        store(gx + width, sigmoid(load(gx + width) + load(gh + width)));
        store(gx + 2 * width, load(gx + 2 * width) + r * hidden_n);
        if (!keep) return;
        T* out = gates_rows[first + m] + unit;
        store_first(out, r, valid);
        store_first(out + 3 * hidden, hidden_n, valid);
      };
      const auto blend = [&](int64_t m) __attribute__((always_inline)) {
        const T* gx = x_tile.at + m * 3 * width;
        const Vec<T> z = load(gx + width), n = tanh(load(gx + 2 * width));
        const Vec<T> h_t = gru_blend(z, n, load_first(h_prev[first + m] + unit, valid));
        store_first(h.at(s, first + m) + unit, h_t, valid);
        h_operands.set(s, first + m, unit, h_t, valid);
        if (!keep) return;
        T* out = gates_rows[first + m] + unit;
        store_first(out + hidden, z, valid);
        store_first(out + 2 * hidden, n, valid);
      };
      for_each_row(count, keep, reset, blend);
    };
    const auto reset_update_tile = [&](const PanelPlace<T>& place, int64_t first, int64_t count) {
      const int64_t p = place.p;
      const int64_t unit = reset_update.column(p, 0), valid = reset_update.valid(p, 0);
      Tile<T> tile;
      weights.weight_rz.multiply(h_operand, 0, first, count, place,
                                 {bias_rz + reset_update.first(p) * width, 0}, tile.at);
      for (int64_t m = 0; m < count; ++m) {
        T* out = gates_rows[first + m] + unit;
        const T* gh = tile.at + m * 2 * width;
        const Vec<T> r = sigmoid(load_first<T>(out, valid) + load(gh));
        const Vec<T> z = sigmoid(load_first<T>(out + hidden, valid) + load(gh + width));
        store_first(out, r, valid);
        store_first(out + hidden, z, valid);
        const Vec<T> reset = r * load_first(h_prev[first + m] + unit, valid);
        if (keep) store_first(out + 3 * hidden, reset, valid);
        store_operand(reset_h + (first + m) * hidden + unit, reset, valid);
      }
    };
    const auto candidate_tile = [&](const PanelPlace<T>& place, int64_t first, int64_t count) {
      const int64_t p = place.p, vectors = candidate.vectors(p);
      Tile<T> tile;
      weights.weight_n.multiply(matrix_rows<const P>(reset_h, hidden), 0, first, count, place,
                                {bias_n + candidate.first(p) * width, 0}, tile.at);
      for (int64_t m = 0; m < count; ++m) {
        for (int64_t v = 0; v < vectors; ++v) {
          const int64_t unit = candidate.column(p, v), valid = candidate.valid(p, v);
          T* out = gates_rows[first + m] + unit;
          const Vec<T> n = tanh(load_first<T>(out + 2 * hidden, valid) +
                                load(tile.at + (m * vectors + v) * width));
          const Vec<T> z = load_first<T>(out + hidden, valid);
          store_first(out + 2 * hidden, n, valid);
          const Vec<T> h_t = gru_blend(z, n, load_first(h_prev[first + m] + unit, valid));
          store_first(h.at(s, first + m) + unit, h_t, valid);
          h_operands.set(s, first + m, unit, h_t, valid);
        }
      }
    };
    const Panels<T>& panels = reset_after ? all : phase == 0 ? reset_update : candidate;
    range.for_each(panels, [&](const PanelPlace<T>& place) {
      for_each_group(row_begin, row_end, [&](int64_t first, int64_t count) {
        if (reset_after)
          reset_after_tile(place, first, count);
        else if (phase == 0)
          reset_update_tile(place, first, count);
        else
          candidate_tile(place, first, count);
      });
    });
  };
  const Panels<T>* shared[] = {reset_after ? &all : &reset_update, &candidate};
  for_each_step(runtime, steps.count, batch, walk.share_rows, reset_after ? 1 : 2, shared,
                product_work(batch, inputs + hidden, 3 * hidden), body);
  copy_last_states(steps, h, h_0, h_last.values, hidden);
  h_last.write();
}

template <class P>
void gru_backward(const Runtime& runtime, const GruBackward& a) {
  typedef Sum<P> T;
  const int64_t batch = a.batch, inputs = a.input_size, hidden = a.hidden_size;
  const int64_t gates_row = 4 * hidden;
  const Steps steps = steps_of(runtime, a);
  const int64_t rows = steps.total();
  const bool reset_after = a.reset_after;
  const auto values = [&](const void* state) {
    return Stored<T>(state, a.storage).values(runtime, batch * hidden);
  };
  const T* h_0 = values(a.h_0);
  // What of grad_h reaches a step other than through its gates; ends as the gradient of h_0.
  const Result<T> grad_h_first(runtime, a.grad_h_0, a.storage, batch * hidden);
  T* carry = grad_h_first.values;
  set_or_zero(values(a.grad_h_n), carry, batch * hidden);

  const PreviousRows<T> h_before(
      runtime, steps,
      like_output<const T>(a, steps, static_cast<const T*>(a.output), hidden, hidden), h_0, hidden);
  const Sequence<const T> gates =
      like_output<const T>(a, steps, static_cast<const T*>(a.gates), hidden, gates_row);
  const StoredSequence<T> grad_output = grad_output_of<T>(a, steps);
  P* grad_gates = allocate<P>(runtime, rows * gates_row);  // processing order
  const Rows<const P> grad_rows = matrix_rows<const P>(grad_gates, gates_row);

  // The recurrent product of one step reads r z and, reset after, the hidden half of n; reset
  // before, n has a product of its own, in a second phase.
  const Panels<T> panels(hidden, 1, runtime.num_threads);
  const Stored<T> hh(a.weight_hh, a.storage);
  const Matrix<P> weight_hh =
      matrix_by_rows<P>(runtime, panels, hh, (reset_after ? 3 : 2) * hidden, steps.single());
  Matrix<P> weight_n{};
  if (!reset_after)
    weight_n =
        matrix_by_rows<P>(runtime, panels, hh.from(2 * hidden * hidden), hidden, steps.single());
  const BackwardProduct<P> products[] = {{&panels, &weight_hh, grad_rows, hidden, 1},
                                         {&panels, &weight_n, grad_rows, 0, 0}};
  const auto epilogue = [&](int64_t s, int phase, int64_t n) {
    const bool ended = s < 0;
    const T* const gate = ended ? nullptr : gates.at(s, n);
    const T* const h_prev = ended ? nullptr : h_before.of_step(s)[n];
    const Stored<T> given = ended ? Stored<T>(nullptr) : grad_output.row(s, n);
    P* const grad_row = ended ? nullptr : grad_gates + (steps.first(s) + n) * gates_row;
    T* const carry_row = carry + n * hidden;
    return [=](int64_t unit, auto valid, Vec<T> product) __attribute__((always_inline)) {
      Vec<T> carried = load_first<T>(carry_row + unit, valid);
      if (ended) return store_first(carry_row + unit, carried + product, valid);
      P* const out = grad_row + unit;
      const Vec<T> r = load_first(gate + unit, valid);
      const Vec<T> before = load_first(h_prev + unit, valid);
      if (phase == 1) {  // product is the gradient of r * h_prev
        store_operand(out + hidden, sigmoid_backward(r, product * before), valid);
        return store_first(carry_row + unit, carried + product * r, valid);
      }
      Vec<T> grad_h = carried + product;
      if (given.data) grad_h = grad_h + given.load(unit, valid);
      Vec<T> grad_z, grad_n;
      gru_blend_backward(load_first(gate + hidden + unit, valid),
                         load_first(gate + 2 * hidden + unit, valid), before, grad_h, grad_z,
                         grad_n, carried);
      store_first(carry_row + unit, carried, valid);
      store_operand(out, grad_n, valid);
      store_operand(out + 2 * hidden, grad_z, valid);
      if (reset_after) {
        const Vec<T> hidden_n = load_first(gate + 3 * hidden + unit, valid);
        store_operand(out + hidden, sigmoid_backward(r, grad_n * hidden_n), valid);
        store_operand(out + 3 * hidden, grad_n * r, valid);
      }
    };
  };
  walk_backward(runtime, steps, products, reset_after ? 1 : 2, epilogue);

  if (a.grad_input) {
    const Panels<T> columns(inputs, 1);
    const int64_t gate = hidden * inputs;
    T* weight_ih = allocate<T>(runtime, columns.packed_size(groups<P>(3 * hidden)));
    as_stored<T>(a.storage, a.weight_ih, [&](const auto* ih) {
      auto n_r_z = matrix_rows(ih, inputs);
      n_r_z.inner = hidden, n_r_z.outer_stride = gate;
      n_r_z.head = ih + 2 * gate, n_r_z.head_stride = inputs;
      pack_rows<P>(runtime, columns, RowsInTurn(n_r_z, 0, 1, 3 * hidden), weight_ih);
    });
    input_gradient<P>(runtime, a, steps, grad_rows, columns, Matrix<P>{3 * hidden, weight_ih});
  }

  grad_h_first.write();
  if (!a.grad_weight_hh && !a.grad_bias_ih) return;
  const Result<T> grad_bias_ih(runtime, a.grad_bias_ih, a.storage, 3 * hidden);
  const Result<T> grad_bias_hh(runtime, a.grad_bias_hh, a.storage, 3 * hidden);
  T *bias_ih = grad_bias_ih.values, *bias_hh = grad_bias_hh.values;
  const Rows<const T> x_rows = input_as<T>(runtime, a, steps).all_rows(runtime, steps);
  const Sequence<const T> reset = like_output<const T>(
      a, steps, static_cast<const T*>(a.gates) + 3 * hidden, hidden, gates_row);
  const Rows<const T> reset_h = reset.all_rows(runtime, steps);
  const Rows<const P> grad_rz = matrix_rows<const P>(grad_gates + hidden, gates_row);
  const Rows<const P> grad_hidden_n = matrix_rows<const P>(grad_gates + 3 * hidden, gates_row);
  const GradientPart<T> ih{x_rows, inputs, a.grad_weight_ih, a.storage};
  const GradientPart<T> hh_rz{h_before.all, hidden, a.grad_weight_hh, a.storage};
  const auto of_n = [&](const GradientPart<T>& part, const Rows<const T>& b) {
    return GradientPart<T>{b, part.columns, part.out_at(2 * hidden * part.columns), part.type};
  };
  const GradientPart<T> rz_parts[] = {ih, hh_rz};
  const GradientPart<T> n_parts[] = {of_n(ih, x_rows), of_n(hh_rz, reset_h)};
  const GradientPart<T> hidden_n_parts[] = {of_n(hh_rz, h_before.all)};
  const int wanted = a.grad_weight_hh ? 2 : 0;
  weight_gradient<P>(runtime, grad_rz, rows, 2 * hidden, rz_parts, wanted, bias_ih);
  weight_gradient<P>(runtime, grad_rows, rows, hidden, n_parts, reset_after ? wanted / 2 : wanted,
                     bias_ih ? bias_ih + 2 * hidden : nullptr);
  if (bias_hh) memcpy(bias_hh, bias_ih, sizeof(T) * static_cast<size_t>(3 * hidden));
  if (reset_after)
    weight_gradient<P>(runtime, grad_hidden_n, rows, hidden, hidden_n_parts, wanted / 2,
                       bias_hh ? bias_hh + 2 * hidden : nullptr);
  grad_bias_ih.write();
  grad_bias_hh.write();
}

}  // namespace
}  // namespace rnnfast

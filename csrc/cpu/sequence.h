// What the three cells' drivers share: strided sequences, packed weights and the walk over steps.
#pragma once

#include "cpu/gemm.h"

namespace rnnfast {
namespace {

// A [T, N, features] tensor in processing order: step 0 is the last time index where time is
// reversed.
template <class T>
struct Sequence {
  T* base;
  int64_t time, row, batch;

  Sequence(T* data, int64_t time_stride, int64_t row_stride, int64_t seq_len, int64_t batch_size,
           bool reverse)
      : base(data && reverse && seq_len ? data + (seq_len - 1) * time_stride : data),
        time(reverse ? -time_stride : time_stride),
        row(row_stride),
        batch(batch_size) {}

  T* at(int64_t step, int64_t n) const { return base + step * time + n * row; }
  Rows<T> step_rows(int64_t step) const { return matrix_rows(base + step * time, row); }
  // All rows, step by step, beginning with `step`.
  Rows<T> rows_from(int64_t step) const { return {base + step * time, batch, time, row}; }
};

// The tensors that every args struct calls by the same name.
template <class T, class Args>
Sequence<const T> input_of(const Args& a) {
  return {static_cast<const T*>(a.input),
          a.input_time,
          a.input_row,
          a.seq_len,
          a.batch,
          a.reverse != 0};
}
template <class T, class Args>
Sequence<const T> grad_output_of(const Args& a) {
  return {static_cast<const T*>(a.grad_output),
          a.grad_output_time,
          a.grad_output_row,
          a.seq_len,
          a.batch,
          a.reverse != 0};
}
// A tensor [T, N, scale * H] laid out as output is: output itself, or what is kept for backward.
template <class T, class Args>
Sequence<T> like_output(const Args& a, decltype(Sequence<T>::base) data, int64_t scale) {
  return {data, scale * a.output_time, scale * a.output_row, a.seq_len, a.batch, a.reverse != 0};
}

// The states before each step, as rows step by step: h_0, then the outputs.
template <class T>
Rows<const T> previous_rows(const Sequence<const T>& output, const T* h_0, int64_t hidden_size) {
  Rows<const T> rows = output.rows_from(0);
  rows.head = h_0;
  rows.head_stride = hidden_size;
  return rows;
}

// A bias packed like one row of the product, the two summed; either may be null.
template <class T>
const T* packed_bias(const Runtime& runtime, const Panels<T>& panels, const void* bias,
                     const void* other) {
  T* packed = allocate<T>(runtime, panels.packed_size(1));
  for (int64_t p = 0; p < panels.count; ++p)
    for (int64_t v = 0; v < panels.vectors(p); ++v) {
      const int64_t column = panels.column(p, v), valid = panels.valid(p, v);
      Vec<T> sum{};
      if (bias) sum = load_first(static_cast<const T*>(bias) + column, valid);
      if (other) sum = sum + load_first(static_cast<const T*>(other) + column, valid);
      store(packed + (panels.first(p) + v) * Vector<T>::width, sum);
    }
  return packed;
}

template <class T>
void copy_rows(const Rows<const T>& from, T* to, int64_t rows, int64_t columns) {
  for (int64_t n = 0; n < rows; ++n)
    memcpy(to + n * columns, from[n], sizeof(T) * static_cast<size_t>(columns));
}

// How a sequence is walked.
//
// Sharing rows: each thread takes some rows of the batch through all steps alone, with all the
// weights in its cache. Sharing panels: each thread takes some units of all rows, so that only its
// share of the weights need be in its cache, and threads meet after every step. Rows where the
// weights that a step reads fit the cache and there are rows enough, panels otherwise.
//
// A fused step multiplies its input with weight_ih in the step's own tile. It needs weight_ih in
// the cache too; where there is no room, the input half of the gates is computed for a chunk of
// steps ahead.
struct Walk {
  bool share_rows, fused;
  int64_t chunk;  // steps projected ahead where not fused

  Walk(const Runtime& runtime, int64_t seq_len, int64_t batch, int64_t hh_bytes, int64_t ih_bytes,
       int64_t gates_bytes)
      : share_rows(false), fused(false), chunk(1) {
    constexpr int64_t kChunkRows = 96, kChunkBytes = 1 << 20;
    const int64_t cache = runtime.cache_bytes;
    share_rows = batch >= 4 * runtime.num_threads && hh_bytes <= cache;
    fused = hh_bytes + ih_bytes <= (share_rows ? cache : cache * runtime.num_threads);
    chunk = max_of(kChunkRows / max_of(batch, 1), kChunkBytes / max_of(batch * gates_bytes, 1));
    chunk = max_of(1, min_of(chunk, seq_len));
  }
};

// Scratch for the gates of one chunk of steps, for inference; none where steps are fused.
template <class T>
Sequence<T> gates_chunk(const Runtime& runtime, const Walk& walk, int64_t batch,
                        int64_t gates_row) {
  T* data = walk.fused ? nullptr : allocate<T>(runtime, walk.chunk * batch * gates_row);
  return {data, batch * gates_row, gates_row, walk.chunk, batch, false};
}

// Calls body(step, phase, row_begin, row_end, panel_begin, panel_end) so that a phase of a step
// begins when all that it may read is written; panels[phase] is the number of panels to share, and
// `work` that of a step.
template <class Body>
void for_each_step(const Runtime& runtime, int64_t steps, int64_t rows, bool share_rows, int phases,
                   const int64_t* panels, int64_t work, const Body& body) {
  if (share_rows) {
    parallel(runtime, rows, steps * work, [&](int64_t begin, int64_t end) {
      for (int64_t s = 0; s < steps; ++s)
        for (int phase = 0; phase < phases; ++phase)
          body(s, phase, begin, end, int64_t{0}, panels[phase]);
    });
  } else {
    for (int64_t s = 0; s < steps; ++s)
      for (int phase = 0; phase < phases; ++phase)
        parallel(runtime, panels[phase], work,
                 [&](int64_t begin, int64_t end) { body(s, phase, int64_t{0}, rows, begin, end); });
  }
}

// One recurrent product of a backward step: the gate gradients of `ahead` steps on, from column
// `offset` on, times a weight.
template <class T>
struct BackwardProduct {
  const Matrix<T>* weight;
  int64_t offset, ahead;
};

// Walks the steps backwards. Turn 0 is the last step, s = steps - 1; after the first step comes one
// turn with s = -1, in which nothing but the gradient of the initial state is left to do. Phase i
// of a turn computes products[i] and calls epilogue(turn, s, i, n, unit, valid, product) for each
// vector of units of each row, which leaves its gate gradients in grad_rows, step by step in
// processing order.
template <class T, class Epilogue>
void walk_backward(const Runtime& runtime, int64_t steps, int64_t batch, const Panels<T>& panels,
                   const Rows<const T>& grad_rows, const BackwardProduct<T>* products, int phases,
                   const Epilogue& epilogue) {
  constexpr int width = Vector<T>::width;
  int64_t depth = 0;
  for (int i = 0; i < phases; ++i) depth += products[i].weight->depth;
  const Walk walk(runtime, steps, batch, panels.packed_size(depth) * sizeof(T), 0, 0);
  const int64_t counts[] = {panels.count, panels.count};
  const auto body = [&](int64_t turn, int phase, int64_t row_begin, int64_t row_end,
                        int64_t panel_begin, int64_t panel_end) {
    const BackwardProduct<T>& product = products[phase];
    const int64_t s = steps - 1 - turn;
    if (s < 0 && phase > 0) return;
    for (int64_t p = panel_begin; p < panel_end; ++p) {
      const int64_t vectors = panels.vectors(p);
      for_each_tile(row_begin, row_end, vectors, [&](int64_t first, int64_t count) {
        Tile<T> tile;
        memset(tile.at, 0, sizeof(T) * static_cast<size_t>(count * vectors * width));
        if (s + product.ahead < steps)
          product.weight->accumulate(grad_rows, product.offset, (s + product.ahead) * batch + first,
                                     count, panels, p, tile.at);
        for (int64_t m = 0; m < count; ++m)
          for (int64_t v = 0; v < vectors; ++v)
            epilogue(turn, s, phase, first + m, panels.column(p, v), panels.valid(p, v),
                     load(tile.at + (m * vectors + v) * width));
      });
    }
  };
  for_each_step(runtime, steps + 1, batch, walk.share_rows, phases, counts,
                product_work(batch, depth, panels.columns), body);
}

// grad_input = gate gradients times weight_ih, where it is wanted.
template <class T, class Args>
void input_gradient(const Runtime& runtime, const Args& a, const Rows<const T>& grad_rows,
                    const Panels<T>& columns, const Matrix<T>& weight_ih) {
  const Sequence<T> grad_x(static_cast<T*>(a.grad_input), a.grad_input_time, a.grad_input_row,
                           a.seq_len, a.batch, a.reverse != 0);
  multiply_parallel<T>(runtime, grad_rows, grad_x.rows_from(0), a.seq_len * a.batch, columns,
                       weight_ih, nullptr);
}

// The input half of the gates for `steps` steps from x_step on: gates = bias + x weight_ih^T.
template <class T>
void project(const Sequence<const T>& x, int64_t x_step, const Sequence<T>& gates,
             int64_t gates_step, int64_t steps, int64_t row_begin, int64_t row_end,
             const Panels<T>& panels, int64_t panel_begin, int64_t panel_end,
             const Matrix<T>& weight, const T* bias) {
  const int64_t rows = row_end - row_begin;
  if (rows <= 0) return;
  const Rows<const T> from{x.at(x_step, row_begin), rows, x.time, x.row};
  const Rows<T> to{gates.at(gates_step, row_begin), rows, gates.time, gates.row};
  multiply(from, to, 0, steps * rows, panels, panel_begin, panel_end, weight, bias);
}

// tile = the packed bias, for `count` rows of panel p.
template <class T>
void fill_tile(const Panels<T>& panels, int64_t p, int64_t count, const T* bias, T* tile) {
  constexpr int width = Vector<T>::width;
  const int64_t vectors = panels.vectors(p);
  const T* from = bias + panels.first(p) * width;
  for (int64_t m = 0; m < count; ++m)
    for (int64_t v = 0; v < vectors; ++v)
      store(tile + (m * vectors + v) * width, load(from + v * width));
}

// tile = panel p of `count` rows from row `first` on.
template <class T>
void load_tile(const Panels<T>& panels, int64_t p, const Rows<T>& rows, int64_t first,
               int64_t count, T* tile) {
  constexpr int width = Vector<T>::width;
  const int64_t vectors = panels.vectors(p);
  for (int64_t m = 0; m < count; ++m) {
    const T* from = rows[first + m];
    for (int64_t v = 0; v < vectors; ++v)
      store(tile + (m * vectors + v) * width,
            load_first(from + panels.column(p, v), panels.valid(p, v)));
  }
}

}  // namespace
}  // namespace rnnfast

// What the three cells' drivers share: strided sequences, packed weights and the walk over steps.
#pragma once

#include "cpu/gemm.h"
#include "cpu/phases.h"

namespace rnnfast {
namespace {

// The steps of a call in processing order (step 0 is the last time index where time is reversed),
// and the rows that take part in each: rows [0, rows(s)) do in step s.
struct Steps {
  int64_t count, batch;
  // Where rows are packed, by step: how many take part, how many do in all steps before, and which
  // row of a packed tensor the step's first is. Otherwise null, and all take part.
  const int64_t* sizes = nullptr;
  const int64_t* before = nullptr;
  const int64_t* starts = nullptr;

  // None in what would be steps before the first and after the last.
  int64_t rows(int64_t s) const { return s < 0 || s >= count ? 0 : sizes ? sizes[s] : batch; }
  // Index of the step's first row among the rows of all steps.
  int64_t first(int64_t s) const { return sizes ? before[s] : s * batch; }
  int64_t total() const { return first(count); }
  // Whether a matrix is used but once. Packed rows have the bits that they have among longer ones.
  bool single() const { return count == 1 && !sizes; }
  // Rows that take part in any step.
  int64_t active() const { return max_of(rows(0), rows(count - 1)); }
};

template <class Args>
Steps steps_of(const Runtime& runtime, const Args& a) {
  Steps steps{a.seq_len, a.batch};
  if (!a.batch_sizes) return steps;
  int64_t* sizes = allocate<int64_t>(runtime, a.seq_len);
  int64_t* before = allocate<int64_t>(runtime, a.seq_len + 1);
  int64_t* starts = allocate<int64_t>(runtime, a.seq_len);
  for (int64_t t = 0, start = 0; t < a.seq_len; start += a.batch_sizes[t++]) {
    const int64_t s = a.reverse ? a.seq_len - 1 - t : t;
    sizes[s] = a.batch_sizes[t];
    starts[s] = start;
  }
  before[0] = 0;
  for (int64_t s = 0; s < a.seq_len; ++s) before[s + 1] = before[s] + sizes[s];
  steps.sizes = sizes, steps.before = before, steps.starts = starts;
  return steps;
}

// A tensor [T, N, features], or [rows, features] with packed rows, by step and row.
template <class T>
struct Sequence {
  T* base;
  int64_t time, row;
  const int64_t* starts;  // Steps::starts
  int64_t origin = 0;     // what stands at base: a step or, packed, a row

  Sequence(T* data, int64_t time_stride, int64_t row_stride, const Steps& steps, bool reverse)
      : base(data), time(time_stride), row(row_stride), starts(steps.starts) {
    if (!reverse || starts) return;
    time = -time_stride;
    if (data && steps.count) base = data + (steps.count - 1) * time_stride;
  }

  T* at(int64_t step, int64_t n) const {
    return base + (starts ? (starts[step] - origin) * row : (step - origin) * time) + n * row;
  }
  Rows<T> step_rows(int64_t step) const { return matrix_rows(at(step, 0), row); }
  // The rows of all steps, in order.
  Rows<T> all_rows(const Runtime& runtime, const Steps& steps) const {
    if (!starts) return {base, steps.batch, time, row};
    T** table = allocate<T*>(runtime, steps.total());
    for (int64_t s = 0; s < steps.count; ++s)
      for (int64_t n = 0; n < steps.rows(s); ++n) table[steps.first(s) + n] = at(s, n);
    return row_table(table);
  }
};

// The same as a caller has it (stored.h).
template <class T>
struct StoredSequence {
  Sequence<char> bytes;
  Storage type;

  StoredSequence(const void* data, int64_t time_stride, int64_t row_stride, const Steps& steps,
                 bool reverse, Storage type_)
      : bytes(static_cast<char*>(const_cast<void*>(data)), time_stride * element_bytes<T>(type_),
              row_stride * element_bytes<T>(type_), steps, reverse),
        type(type_) {}

  // Null where the tensor is.
  Stored<T> row(int64_t step, int64_t n) const {
    return {bytes.base ? bytes.at(step, n) : nullptr, type};
  }
  void store(int64_t step, int64_t n, int64_t at, Vec<T> x, int64_t valid) const {
    store_stored<T>(type, bytes.at(step, n), at, x, valid);
  }
};

// The tensors that every args struct calls by the same name.
template <class T, class Args>
StoredSequence<T> input_of(const Args& a, const Steps& steps) {
  return {a.input, a.input_time, a.input_row, steps, a.reverse != 0, a.storage};
}
template <class T, class Args>
StoredSequence<T> output_of(const Args& a, const Steps& steps) {
  return {a.output, a.output_time, a.output_row, steps, a.reverse != 0, a.storage};
}
template <class T, class Args>
StoredSequence<T> grad_output_of(const Args& a, const Steps& steps) {
  return {a.grad_output, a.grad_output_time, a.grad_output_row, steps, a.reverse != 0, a.storage};
}
// A contiguous tensor laid out as output, whose rows have `size` elements, but with `features`.
template <class T, class Args>
Sequence<T> like_output(const Args& a, const Steps& steps, decltype(Sequence<T>::base) data,
                        int64_t size, int64_t features) {
  return {data, a.output_time / size * features, a.output_row / size * features, steps,
          a.reverse != 0};
}

// The states before each row of each step: the initial one in the first step of a row, then those
// of the step before.
template <class T>
struct PreviousRows {
  Rows<const T> all;
  const Steps* steps;

  PreviousRows(const Runtime& runtime, const Steps& all_steps, const Sequence<const T>& states,
               const T* initial, int64_t size)
      : steps(&all_steps) {
    if (!states.starts || !states.base) {  // not ragged, or not kept and so not read
      all = {states.base, steps->batch, states.time, states.row, nullptr, initial, size};
      return;
    }
    const T** table = allocate<const T*>(runtime, steps->total());
    for (int64_t s = 0; s < steps->count; ++s)
      for (int64_t n = 0; n < steps->rows(s); ++n)
        table[steps->first(s) + n] =
            n < steps->rows(s - 1) ? states.at(s - 1, n) : initial + n * size;
    all = row_table(table);
  }

  Rows<const T> of_step(int64_t s) const {
    if (all.table) return row_table(all.table + steps->first(s));
    if (s == 0) return matrix_rows(all.head, all.head_stride);
    return matrix_rows(all.base + (s - 1) * all.outer_stride, all.inner_stride);
  }
};

// The input as E, which operands of products are held as or sums are: a copy where the caller has
// it otherwise.
template <class E, class Args>
Sequence<const E> input_as(const Runtime& runtime, const Args& a, const Steps& steps) {
  const bool reverse = a.reverse != 0;
  if (a.storage == (kGroup<E> == 1 ? Storage::own : Storage::bfloat16))
    return {static_cast<const E*>(a.input), a.input_time, a.input_row, steps, reverse};
  const int64_t features = a.input_size;
  E* data = allocate<E>(runtime, steps.total() * features);
  const Rows<char> rows = input_of<Sum<E>>(a, steps).bytes.all_rows(runtime, steps);
  const Rows<E> copies =
      Sequence<E>(data, steps.batch * features, features, steps, reverse).all_rows(runtime, steps);
  parallel(runtime, steps.total(), steps.total() * features * kMoveWork,
           [&](int64_t begin, int64_t end) {
             for (int64_t r = begin; r < end; ++r)
               read_row(a.storage, rows[r], copies[r], features);
           });
  return {data, steps.batch * features, features, steps, reverse};
}

// Where the states of every step are as they are computed: the output itself; or, where the caller
// has that in another type, what it is written from.
template <class T, class Args>
T* computed_states(const Runtime& runtime, const Args& a, const Steps& steps, int64_t size) {
  if (a.storage == Storage::own) return static_cast<T*>(a.output);
  return a.states ? static_cast<T*>(a.states) : allocate<T>(runtime, steps.total() * size);
}

// The states before each row of each step as operands of the recurrent product. Where operands are
// held otherwise, each step leaves its states rounded for the next, in one of two buffers. At
// first both hold the initial states, which a row finds in its own first step, whenever that is.
// Where the output is not the computed states, it is written here.
template <class P>
struct PreviousOperands {
  typedef Sum<P> T;
  const PreviousRows<T>* states;
  StoredSequence<T> output;
  int64_t batch, size;
  P* buffers = nullptr;

  PreviousOperands(const Runtime& runtime, const PreviousRows<T>& states_, const T* initial,
                   const StoredSequence<T>& output_, int64_t batch_, int64_t size_)
      : states(&states_), output(output_), batch(batch_), size(size_) {
    if constexpr (kGroup<P> > 1) {
      buffers = allocate<P>(runtime, 2 * batch * size);
      for (int64_t n = 0; n < 2 * batch; ++n)
        read_row(Storage::own, initial + n % batch * size, buffers + n * size, size);
    }
  }
  Rows<const P> of_step(int64_t s) const {
    if constexpr (kGroup<P> > 1)
      return matrix_rows<const P>(after(s - 1), size);
    else
      return states->of_step(s);
  }
  // To be told of all that step s makes of the state of row n.
  void set(int64_t s, int64_t n, int64_t unit, Vec<T> state, int64_t valid) const {
    if constexpr (kGroup<P> > 1) store_operand(after(s) + n * size + unit, state, valid);
    if (output.type != Storage::own) output.store(s, n, unit, state, valid);
  }
  // Likewise, of all that stands in some panels' columns of rows.
  void set_panels(int64_t s, const Rows<T>& rows, int64_t row_begin, int64_t row_end,
                  const Panels<T>& panels, const PanelRange& range) const {
    constexpr int width = Panels<T>::width;
    if (kGroup<P> == 1 && output.type == Storage::own) return;
    const int64_t begin = panels.first(range.begin) * width;
    const int64_t end = min_of(panels.columns, panels.first(range.end) * width);
    for (int64_t n = row_begin; n < row_end; ++n)
      for (int64_t unit = begin; unit < end; unit += width) {
        const int64_t valid = min_of(width, end - unit);
        set(s, n, unit, load_first(rows[n] + unit, valid), valid);
      }
  }

 private:
  P* after(int64_t s) const { return buffers + (s & 1) * batch * size; }
};

// last = the state after each row's last step; the initial one where a row has none.
template <class T>
void copy_last_states(const Steps& steps, const Sequence<T>& states, const T* initial, T* last,
                      int64_t size) {
  const auto copy = [&](const T* from, int64_t n) {
    memcpy(last + n * size, from, sizeof(T) * static_cast<size_t>(size));
  };
  for (int64_t n = steps.active(); n < steps.batch; ++n) copy(initial + n * size, n);
  for (int64_t s = 0; s < steps.count; ++s)
    for (int64_t n = steps.rows(s + 1); n < steps.rows(s); ++n) copy(states.at(s, n), n);
}

// The gradient of the initial states of rows that have no step.
template <class T>
void pass_idle_gradient(const Steps& steps, const T* grad_last, T* grad_initial, int64_t size) {
  const int64_t idle = steps.active() * size;
  set_or_zero(grad_last ? grad_last + idle : nullptr, grad_initial + idle,
              steps.batch * size - idle);
}

// A bias packed like one row of the product, the two summed; either may be null.
template <class T>
const T* packed_bias(const Runtime& runtime, const Panels<T>& panels, const Stored<T>& bias,
                     const Stored<T>& other) {
  T* packed = allocate<T>(runtime, panels.packed_size(1));
  for (int64_t p = 0; p < panels.count; ++p)
    for (int64_t v = 0; v < panels.vectors(p); ++v) {
      const int64_t column = panels.column(p, v), valid = panels.valid(p, v);
      Vec<T> sum{};
      if (bias.data) sum = bias.load(column, valid);
      if (other.data) sum = sum + other.load(column, valid);
      store(packed + (panels.first(p) + v) * Vector<T>::width, sum);
    }
  return packed;
}

// How a sequence is walked.
//
// Sharing rows: each thread takes some rows of the batch through all steps alone, with all the
// weights in its cache. Sharing panels: each thread takes some units of all rows, so that only its
// share of the weights need be in its cache, and threads meet after every step. Rows where the
// weights that a step reads fit the cache, or most of it is left to those of the input, and there
// are rows enough; panels otherwise.
//
// A fused step multiplies its input with weight_ih in the step's own tile. It needs weight_ih in
// the cache too; where there is no room, the input half of the gates is computed for a chunk of
// steps ahead. So it is for a few rows, whose products take as long as the weights take to arrive:
// those of many steps share one reading of weight_ih. So it is, too, where both weights exceed even
// the cache that all cores share: then more rows make up for what comes from memory.
struct Walk {
  bool share_rows, fused;
  int64_t chunk;  // steps projected ahead where not fused

  Walk(const Runtime& runtime, int64_t seq_len, int64_t batch, int64_t hh_bytes, int64_t ih_bytes,
       int64_t gates_bytes)
      : share_rows(false), fused(false), chunk(1) {
    constexpr int64_t kChunkRows = 96, kFarChunkRows = 384, kChunkBytes = 1 << 20;
    constexpr int64_t kFewRows = 4, kManyRows = 16;
    const int64_t cache = runtime.cache_bytes;
    const int64_t step_bytes = hh_bytes + (batch >= kManyRows ? ih_bytes : 0);
    share_rows = batch >= 4 * runtime.num_threads &&
                 (hh_bytes <= cache / 2 || (hh_bytes <= cache * 3 / 4 && step_bytes <= cache));
    const bool fits = hh_bytes + ih_bytes <= (share_rows ? cache : cache * runtime.num_threads);
    const bool far = hh_bytes + ih_bytes > runtime.shared_cache_bytes;
    fused = (batch >= kManyRows && !far) || (fits && (batch >= kFewRows || seq_len == 1));
    const int64_t rows = far ? kFarChunkRows : kChunkRows;
    chunk = max_of(rows / max_of(batch, 1), kChunkBytes / max_of(batch * gates_bytes, 1));
    chunk = max_of(1, min_of(chunk, seq_len));
  }
};

// Scratch for the gates of one chunk of steps, for inference; none where steps are fused.
template <class T>
Sequence<T> gates_scratch(const Runtime& runtime, const Walk& walk, const Steps& steps,
                          int64_t gates_row) {
  const int64_t rows = walk.chunk * steps.batch;
  return {walk.fused ? nullptr : allocate<T>(runtime, rows * gates_row), steps.batch * gates_row,
          gates_row, steps, false};
}

// The same, as it stands while the chunk of step s is worked on.
template <class T>
Sequence<T> chunk_of(const Sequence<T>& scratch, const Walk& walk, const Steps& steps, int64_t s) {
  Sequence<T> chunk = scratch;
  const int64_t begin = s - s % walk.chunk, last = min_of(begin + walk.chunk, steps.count) - 1;
  chunk.origin = steps.starts ? min_of(steps.starts[begin], steps.starts[last]) : begin;
  return chunk;
}

// A place in the work of some rows times all panels, panel by panel: rows [0, row) of panel p, and
// all rows of the panels before, lie before it.
struct WorkPlace {
  int64_t p, row;
};

// Where so many halves of a vector's work lie before. Rows are cut in few pieces, for a tile of one
// row takes as long as one of several.
template <class T>
WorkPlace work_place(const Panels<T>& panels, int64_t rows, int64_t halves) {
  if (halves >= 2 * panels.total()) return {panels.count, 0};
  int64_t p = halves / 2 * panels.count / panels.total();
  while (2 * panels.first(p) > halves) --p;
  while (2 * panels.first(p + 1) <= halves) ++p;
  return {p, rows * (halves - 2 * panels.first(p)) / (2 * panels.vectors(p))};
}

// Calls body(row_begin, row_end, range of panels) for all that lies between two places.
template <class Body>
void for_each_between(const WorkPlace& begin, const WorkPlace& end, int64_t rows, bool backwards,
                      const Body& body) {
  const int64_t whole = begin.row > 0 ? begin.p + 1 : begin.p;  // the first panel with all rows
  const struct {
    int64_t row_begin, row_end, panel_begin, panel_end;
  } pieces[] = {{begin.row, begin.p == end.p ? end.row : rows, begin.p, whole},
                {0, rows, whole, end.p},
                {0, whole <= end.p ? end.row : 0, end.p, end.p + 1}};
  for (int i = 0; i < 3; ++i) {
    const auto& piece = pieces[backwards ? 2 - i : i];
    if (piece.row_begin < piece.row_end && piece.panel_begin < piece.panel_end)
      body(piece.row_begin, piece.row_end,
           PanelRange{piece.panel_begin, piece.panel_end, backwards});
  }
}

// Calls body(step, phase, row_begin, row_end, range of panels) so that a phase of a step begins
// when all that it may read is written; panels[phase] are those to share, and `work` is that of a
// step. Shared panels are cut between rows where there are rows enough: a 13th panel would keep one
// of two threads waiting. Every other step takes its panels backwards: of weights larger than the
// cache, those that the step before had last are still there, where otherwise each would be pushed
// out just before its turn.
template <class T, class Body>
void for_each_step(const Runtime& runtime, int64_t steps, int64_t rows, bool share_rows, int phases,
                   const Panels<T>* const* panels, int64_t work, const Body& body) {
  constexpr int64_t kCutRows = 12;
  if (share_rows) {
    parallel(runtime, rows, steps * work, [&](int64_t begin, int64_t end) {
      for (int64_t s = 0; s < steps; ++s)
        for (int phase = 0; phase < phases; ++phase)
          body(s, phase, begin, end, PanelRange{0, panels[phase]->count, s % 2 == 1});
    });
    return;
  }
  const bool cut = rows >= kCutRows;
  const auto tasks = [&](int64_t turn) {
    const Panels<T>& shared = *panels[turn % phases];
    return cut ? 2 * shared.total() : shared.count;
  };
  for_each_phase(
      runtime, steps * phases, work / phases, tasks, [&](int64_t turn, int64_t begin, int64_t end) {
        const int64_t s = turn / phases;
        const int phase = static_cast<int>(turn % phases);
        const Panels<T>& shared = *panels[phase];
        const bool backwards = s % 2 == 1;
        if (!cut) return body(s, phase, int64_t{0}, rows, PanelRange{begin, end, backwards});
        for_each_between(work_place(shared, rows, begin), work_place(shared, rows, end), rows,
                         backwards,
                         [&](int64_t row_begin, int64_t row_end, const PanelRange& range) {
                           body(s, phase, row_begin, row_end, range);
                         });
      });
}

// The number of lanes of a whole vector, as a constant.
template <class T>
struct WholeVector {
  constexpr operator int64_t() const { return Vector<T>::width; }
};

// Calls body(valid), with that constant where it is so: no load and no store need ask, then.
template <class T, class Body>
RNNFAST_INLINE void with_valid(int64_t valid, const Body& body) {
  if (valid == Vector<T>::width) return body(WholeVector<T>{});
  body(valid);
}

// One recurrent product of a backward step: `rows` of `ahead` steps on, from column `offset` on,
// times a weight whose columns are cut into `panels`.
template <class P>
struct BackwardProduct {
  const Panels<Sum<P>>* panels;
  const Matrix<P>* weight;
  Rows<const P> rows;
  int64_t offset, ahead;
};

// Walks the steps backwards. Turn 0 is the last step; after the first step comes one turn more, in
// which nothing but gradients of initial states are left to do. Phase i of a turn computes
// products[i] and, for each row n, calls what epilogue(s, phase, n) gives with (unit, valid,
// product) for each vector of units; s is the step or, in the turn after a row's first step, -1
// (phase 0 only).
template <class P, class Epilogue>
void walk_backward(const Runtime& runtime, const Steps& steps, const BackwardProduct<P>* products,
                   int phases, const Epilogue& epilogue) {
  typedef Sum<P> T;
  constexpr int width = Vector<T>::width;
  int64_t bytes = 0, work = 0;
  const Panels<T>* panels[2] = {};
  for (int i = 0; i < phases; ++i) {
    const BackwardProduct<P>& product = products[i];
    bytes += product.panels->packed_size(groups<P>(product.weight->depth)) * sizeof(T);
    work += product_work(steps.batch, product.weight->depth, product.panels->columns);
    panels[i] = product.panels;
  }
  const Walk walk(runtime, steps.count, steps.batch, bytes, 0, 0);
  const auto body = [&](int64_t turn, int phase, int64_t row_begin, int64_t row_end,
                        const PanelRange& range) {
    const BackwardProduct<P>& product = products[phase];
    const Panels<T>& panels = *product.panels;
    const int64_t s = steps.count - 1 - turn, ahead = s + product.ahead;
    const int64_t rows_ahead = steps.rows(ahead), rows = steps.rows(s);
    row_end = min_of(row_end, phase == 0 ? max_of(rows, rows_ahead) : rows);
    range.for_each(panels, [&](const PanelPlace<T>& place) {
      const int64_t p = place.p, vectors = panels.vectors(p);
      for_each_group(row_begin, row_end, [&](int64_t first, int64_t count) {
        Tile<T> tile;
        const int64_t reached = max_of(0, min_of(count, rows_ahead - first));
        if (reached > 0)
          product.weight->multiply(product.rows, product.offset, steps.first(ahead) + first,
                                   reached, place, zero_start<T>(), tile.at);
        memset(tile.at + reached * vectors * width, 0,
               sizeof(T) * static_cast<size_t>((count - reached) * vectors * width));
        for (int64_t m = 0; m < count; ++m) {
          const auto finish = epilogue(first + m < rows ? s : -1, phase, first + m);
          for (int64_t v = 0; v < vectors; ++v)
            with_valid<T>(panels.valid(p, v), [&](auto valid) __attribute__((always_inline)) {
              finish(panels.column(p, v), valid, load(tile.at + (m * vectors + v) * width));
            });
        }
      });
    });
  };
  for_each_step(runtime, steps.count + 1, steps.batch, walk.share_rows, phases, panels, work, body);
}

// grad_input = gate gradients times weight_ih, where it is wanted.
template <class P, class T, class Args>
void input_gradient(const Runtime& runtime, const Args& a, const Steps& steps,
                    const Rows<const P>& grad_rows, const Panels<T>& columns,
                    const Matrix<P>& weight_ih) {
  const int64_t rows = steps.total(), features = columns.columns;
  const bool reverse = a.reverse != 0;
  if (a.storage == Storage::own) {
    const Sequence<T> grad_x(static_cast<T*>(a.grad_input), a.grad_input_time, a.grad_input_row,
                             steps, reverse);
    return multiply_parallel<P, T>(runtime, grad_rows, grad_x.all_rows(runtime, steps), rows,
                                   columns, weight_ih, nullptr);
  }
  T* values = allocate<T>(runtime, rows * features);
  multiply_parallel<P, T>(runtime, grad_rows, matrix_rows(values, features), rows, columns,
                          weight_ih, nullptr);
  const StoredSequence<T> grad_x(a.grad_input, a.grad_input_time, a.grad_input_row, steps, reverse,
                                 a.storage);
  const Rows<char> to = grad_x.bytes.all_rows(runtime, steps);
  parallel(runtime, rows, rows * features * kMoveWork, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      write_row(values + r * features, a.storage, to[r], features);
  });
}

// The input half of the gates for the chunk of steps that s begins: gates = bias + x weight_ih^T.
template <class P, class T>
void project(const Walk& walk, const Steps& steps, int64_t s, const Sequence<const P>& x,
             const Sequence<T>& gates, int64_t row_begin, int64_t row_end, const Panels<T>& panels,
             const PanelRange& range, const Matrix<P>& weight, const T* bias) {
  const int64_t end = min_of(s + walk.chunk, steps.count), rows = row_end - row_begin;
  const auto run = [&](const Rows<const P>& from, const Rows<T>& to, int64_t count) {
    multiply(from, to, 0, count, panels, range, weight, bias);
  };
  if (!steps.starts) {
    if (rows > 0)
      run({x.at(s, row_begin), rows, x.time, x.row},
          {gates.at(s, row_begin), rows, gates.time, gates.row}, (end - s) * rows);
  } else if (row_begin == 0 && row_end == steps.batch) {
    // All rows of these steps are neighbours, whatever the direction.
    const int64_t lowest = steps.starts[s] < steps.starts[end - 1] ? s : end - 1;
    run(x.step_rows(lowest), gates.step_rows(lowest), steps.first(end) - steps.first(s));
  } else {
    for (int64_t step = s; step < end; ++step) {
      const int64_t count = min_of(row_end, steps.rows(step)) - row_begin;
      if (count > 0)
        run(matrix_rows(x.at(step, row_begin), x.row),
            matrix_rows(gates.at(step, row_begin), gates.row), count);
    }
  }
}

// Calls first(m), then second(m), for each row of a tile. A processor has but a few rows in flight,
// and one activation of the other's result takes as long as all else: so all rows take the first
// before any takes the second, unless so much is `kept` in between that memory is waited for.
template <class First, class Second>
RNNFAST_INLINE void for_each_row(int64_t count, bool kept, const First& first,
                                 const Second& second) {
  for (int64_t m = 0; m < count; ++m) {
    first(m);
    if (kept) second(m);
  }
  for (int64_t m = 0; !kept && m < count; ++m) second(m);
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

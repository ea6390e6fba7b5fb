// One step of one layer on the CPU: the body of ../stream.h, compiled for each ISA.
//
// A tile is some rows times the gates of one vector of units, in registers: biases, input product,
// recurrent product, then the pointwise part. With one row, a step takes as long as the weights
// take to arrive: the four accumulators of a tile hide the multiply-adds behind that.
#pragma once

#include "cpu/activations.h"
#include "cpu/sequence.h"
#include "pointwise.h"
#include "stream.h"

namespace rnnfast {
namespace {

// What a step's input is: rows, or places in a table.
template <class T>
struct StreamInput {
  Rows<const T> rows;
  const int64_t* ids;
};

// Some of a layer's gates: columns of both weights and of the biases, in the same panels.
template <class T>
struct StreamGates {
  Panels<T> panels{0, 1};
  Matrix<T> weight_ih{}, weight_hh{};
  // Packed; bias_ih is the sum of both where the halves of the gates are not needed apart.
  const T *bias_ih = nullptr, *bias_hh = nullptr;
  const T* table = nullptr;  // the input half of every row of an embedding, laid out as a bias each

  // tile = bias + x weight_ih^T of some rows.
  void input_half(const StreamInput<T>& x, int64_t first, int64_t count, const PanelPlace<T>& place,
                  T* tile) const {
    if (!table) return project(x.rows, first, count, place, tile);
    const int64_t elements = panels.vectors(place.p) * Vector<T>::width;
    for (int64_t m = 0; m < count; ++m)
      memcpy(tile + m * elements, row_of_table(table, x.ids[first + m], place.p),
             sizeof(T) * elements);
  }
  void recurrent_half(const Rows<const T>& h, int64_t first, int64_t count,
                      const PanelPlace<T>& place, T* tile) const {
    weight_hh.multiply(h, 0, first, count, place, start(bias_hh, place.p), tile);
  }
  // tile = both halves.
  void both_halves(const StreamInput<T>& x, const Rows<const T>& h, int64_t first, int64_t count,
                   const PanelPlace<T>& place, T* tile) const {
    input_half(x, first, count, place, tile);
    weight_hh.accumulate(h, 0, first, count, place, tile);
  }

  // From here on the input is places among `count` rows, whose input halves are computed now.
  void tabulate(const Runtime& runtime, const Rows<const T>& rows, int64_t count) {
    T* const made = allocate<T>(runtime, count * panels.packed_size(1));
    const int64_t work = product_work(count, weight_ih.depth, panels.columns * panels.gates);
    parallel(runtime, panels.count, work, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        for_each_tile(0, count, panels.vectors(p), [&](int64_t first, int64_t n) {
          const int64_t elements = panels.vectors(p) * Vector<T>::width;
          Tile<T> tile;
          project(rows, first, n, {panels, p}, tile.at);
          for (int64_t m = 0; m < n; ++m)
            memcpy(const_cast<T*>(row_of_table(made, first + m, p)), tile.at + m * elements,
                   sizeof(T) * elements);
        });
    });
    table = made;
    weight_ih = {};
  }

 private:
  void project(const Rows<const T>& x, int64_t first, int64_t count, const PanelPlace<T>& place,
               T* tile) const {
    weight_ih.multiply(x, 0, first, count, place, start(bias_ih, place.p), tile);
  }
  // What panel p has of a row.
  const T* row_of_table(const T* rows, int64_t row, int64_t p) const {
    return rows + row * panels.packed_size(1) + panels.offset(1, p);
  }
  Start<T> start(const T* bias, int64_t p) const {
    return {bias + panels.first(p) * Vector<T>::width, 0};
  }
};

// Plain data, so that it may stand in the host's memory.
template <class T>
struct StreamPacked {
  StreamLayer layer;
  int64_t state_size;        // of h
  StreamGates<T> gates;      // all; of the GRU that resets before, r and z
  StreamGates<T> candidate;  // of that GRU, n
  Panels<T> projected{0, 1};
  Matrix<T> weight_hr{};
  T* scratch = nullptr;  // [2, N, H]
};

// Gates [first, first + count) of a layer.
template <class T>
StreamGates<T> pack_gates(const Runtime& runtime, const Runtime& scratch, const StreamLayer& a,
                          int64_t state_size, int64_t first, int64_t count) {
  const int64_t row = first * a.hidden_size;
  const auto rows_of = [&](const void* values, int64_t depth) {
    return values ? static_cast<const T*>(values) + row * depth : nullptr;
  };
  StreamGates<T> gates;
  gates.panels = Panels<T>(a.hidden_size, count);
  gates.weight_ih = matrix_by_columns<T>(a.embedding ? scratch : runtime, gates.panels,
                                         rows_of(a.weight_ih, a.input_size), a.input_size, false);
  gates.weight_hh = matrix_by_columns<T>(runtime, gates.panels, rows_of(a.weight_hh, state_size),
                                         state_size, false);
  const T *ih = rows_of(a.bias_ih, 1), *hh = rows_of(a.bias_hh, 1);
  const bool apart = a.cell == kStreamGru || a.cell == kStreamGruResetBefore;
  gates.bias_ih = packed_bias<T>(runtime, gates.panels, ih, apart ? nullptr : hh);
  if (apart) gates.bias_hh = packed_bias<T>(runtime, gates.panels, hh, nullptr);
  if (a.embedding) {
    const T* embedding = static_cast<const T*>(a.embedding);
    gates.tabulate(runtime, matrix_rows(embedding, a.input_size), a.num_embeddings);
  }
  return gates;
}

template <class T>
void* stream_layer(const Runtime* runtime, const Runtime* scratch, const StreamLayer* a) {
  StreamPacked<T> packed;
  packed.layer = *a;
  packed.state_size = a->proj_size ? a->proj_size : a->hidden_size;
  const auto gates = [&](int64_t first, int64_t count) {
    return pack_gates<T>(*runtime, *scratch, *a, packed.state_size, first, count);
  };
  switch (a->cell) {
    case kStreamLstm:
      packed.gates = gates(0, 4);
      break;
    case kStreamGru:
      packed.gates = gates(0, 3);
      break;
    case kStreamGruResetBefore:
      packed.gates = gates(0, 2);
      packed.candidate = gates(2, 1);
      break;
    case kStreamRnnTanh:
    case kStreamRnnRelu:
      packed.gates = gates(0, 1);
  }
  if (a->proj_size) {
    packed.projected = Panels<T>(a->proj_size, 1);
    packed.weight_hr = matrix_by_columns<T>(
        *runtime, packed.projected, static_cast<const T*>(a->weight_hr), a->hidden_size, false);
  }
  if (a->proj_size || a->cell == kStreamGruResetBefore)
    packed.scratch = allocate<T>(*runtime, 2 * a->batch * a->hidden_size);
  return kept(*runtime, packed);
}

// The work, counted as product_work() does, from which a step is shared out. Measured with one row:
// steps back to back gain nothing from a second thread at 2^18 and a third at 2^20; after pauses of
// 2 ms, in which that thread has gone to sleep, they gain from 2^21 on.
constexpr int64_t kStreamParallelWork = 1 << 21;

template <class Body>
void share_step(const Runtime& runtime, int64_t tasks, int64_t work, const Body& body) {
  if (work < kStreamParallelWork) return body(int64_t{0}, tasks);
  parallel(runtime, tasks, work, body);
}

// What the tiles of a step work on.
template <class T>
struct StreamRows {
  const StreamPacked<T>& packed;
  int64_t hidden;
  StreamInput<T> x;
  Rows<const T> h;  // h_{t-1}
  const T* h_prev;
  T *c, *h_t;
  T *reset_h, *update;  // r h_{t-1} and z, of the GRU that resets before
  bool backwards;

  StreamRows(const StreamPacked<T>& packed_, const StreamStep& a)
      : packed(packed_),
        hidden(packed.layer.hidden_size),
        x{matrix_rows(static_cast<const T*>(a.input), packed.layer.input_size),
          static_cast<const int64_t*>(a.input)},
        h(matrix_rows(static_cast<const T*>(a.h), packed.state_size)),
        h_prev(static_cast<const T*>(a.h)),
        c(static_cast<T*>(a.c)),
        h_t(packed.layer.proj_size ? packed.scratch : static_cast<T*>(a.output)),
        reset_h(packed.scratch),
        update(packed.scratch ? packed.scratch + packed.layer.batch * hidden : nullptr),
        backwards(a.backwards) {}
};

template <class T>
void stream_lstm_tile(const StreamRows<T>& a, const PanelPlace<T>& place, int64_t first,
                      int64_t count) {
  constexpr int width = Vector<T>::width;
  const StreamGates<T>& gates = a.packed.gates;
  const int64_t unit = place.panels.column(place.p, 0), valid = place.panels.valid(place.p, 0);
  Tile<T> tile;
  gates.both_halves(a.x, a.h, first, count, place, tile.at);
  for (int64_t m = 0; m < count; ++m) {
    const T* pre = tile.at + m * 4 * width;
    const int64_t at = (first + m) * a.hidden + unit;
    LstmGates<Vec<T>> gate{load(pre), load(pre + width), load(pre + 2 * width),
                           load(pre + 3 * width)};
    Vec<T> c_t, h_t;
    lstm_pointwise(gate, load_first<T>(a.c + at, valid), c_t, h_t);
    store_first(a.c + at, c_t, valid);
    store_first(a.h_t + at, h_t, valid);
  }
}

// Both forms of GRU: all of reset_after's, r and z of the other.
template <class T, bool reset_after>
void stream_gru_tile(const StreamRows<T>& a, const PanelPlace<T>& place, int64_t first,
                     int64_t count) {
  constexpr int width = Vector<T>::width, vectors = reset_after ? 3 : 2;
  const StreamGates<T>& gates = a.packed.gates;
  const int64_t unit = place.panels.column(place.p, 0), valid = place.panels.valid(place.p, 0);
  Tile<T> x_tile, h_tile;
  gates.input_half(a.x, first, count, place, x_tile.at);
  gates.recurrent_half(a.h, first, count, place, h_tile.at);
  for (int64_t m = 0; m < count; ++m) {
    const T *gx = x_tile.at + m * vectors * width, *gh = h_tile.at + m * vectors * width;
    const int64_t at = (first + m) * a.hidden + unit;
    const Vec<T> r = sigmoid(load(gx) + load(gh));
    const Vec<T> z = sigmoid(load(gx + width) + load(gh + width));
    const Vec<T> h_prev = load_first(a.h_prev + at, valid);
    if constexpr (reset_after) {
      const Vec<T> n = tanh(load(gx + 2 * width) + r * load(gh + 2 * width));
      store_first(a.h_t + at, gru_blend(z, n, h_prev), valid);
    } else {
      store_first(a.update + at, z, valid);
      store_first(a.reset_h + at, r * h_prev, valid);
    }
  }
}

template <class T>
void stream_candidate_tile(const StreamRows<T>& a, const PanelPlace<T>& place, int64_t first,
                           int64_t count) {
  constexpr int width = Vector<T>::width;
  const StreamGates<T>& gates = a.packed.candidate;
  const int64_t p = place.p, vectors = gates.panels.vectors(p);
  Tile<T> x_tile, h_tile;
  gates.input_half(a.x, first, count, place, x_tile.at);
  gates.recurrent_half(matrix_rows<const T>(a.reset_h, a.hidden), first, count, place, h_tile.at);
  for (int64_t m = 0; m < count; ++m) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t in_tile = (m * vectors + v) * width, valid = gates.panels.valid(p, v);
      const int64_t at = (first + m) * a.hidden + gates.panels.column(p, v);
      const Vec<T> n = tanh(load(x_tile.at + in_tile) + load(h_tile.at + in_tile));
      const Vec<T> z = load_first<T>(a.update + at, valid);
      store_first(a.h_t + at, gru_blend(z, n, load_first(a.h_prev + at, valid)), valid);
    }
  }
}

template <class T>
void stream_rnn_tile(const StreamRows<T>& a, const PanelPlace<T>& place, int64_t first,
                     int64_t count) {
  constexpr int width = Vector<T>::width;
  const StreamGates<T>& gates = a.packed.gates;
  const int64_t p = place.p;
  const bool relu = a.packed.layer.cell == kStreamRnnRelu;
  const int64_t vectors = gates.panels.vectors(p);
  Tile<T> tile;
  gates.both_halves(a.x, a.h, first, count, place, tile.at);
  for (int64_t m = 0; m < count; ++m) {
    for (int64_t v = 0; v < vectors; ++v) {
      const Vec<T> pre = load(tile.at + (m * vectors + v) * width);
      // Written so that NaN, for which every comparison is false, stays.
      const Vec<T> state = relu ? (pre <= Vec<T>{} ? Vec<T>{} : pre) : tanh(pre);
      store_first(a.h_t + (first + m) * a.hidden + gates.panels.column(p, v), state,
                  gates.panels.valid(p, v));
    }
  }
}

// All tiles of some gates.
template <class T>
void stream_tiles(const Runtime& runtime, const StreamRows<T>& a, const StreamGates<T>& gates,
                  void (*tile)(const StreamRows<T>&, const PanelPlace<T>&, int64_t, int64_t)) {
  const Panels<T>& panels = gates.panels;
  const int64_t batch = a.packed.layer.batch;
  const int64_t work = product_work(batch, gates.weight_ih.depth + gates.weight_hh.depth,
                                    panels.columns * panels.gates);
  share_step(runtime, panels.count, work, [&](int64_t begin, int64_t end) {
    PanelRange{begin, end, a.backwards}.for_each(panels, [&](const PanelPlace<T>& place) {
      for_each_tile(0, batch, panels.vectors(place.p),
                    [&](int64_t first, int64_t count) { tile(a, place, first, count); });
    });
  });
}

template <class T>
void stream_step(const Runtime& runtime, const StreamStep& step) {
  const StreamPacked<T>& packed = *static_cast<const StreamPacked<T>*>(step.layer);
  const StreamLayer& layer = packed.layer;
  const StreamRows<T> rows(packed, step);
  switch (layer.cell) {
    case kStreamLstm:
      stream_tiles(runtime, rows, packed.gates, stream_lstm_tile<T>);
      break;
    case kStreamGru:
      stream_tiles(runtime, rows, packed.gates, stream_gru_tile<T, true>);
      break;
    case kStreamGruResetBefore:
      // In two phases: n needs r h_{t-1} of all units.
      stream_tiles(runtime, rows, packed.gates, stream_gru_tile<T, false>);
      stream_tiles(runtime, rows, packed.candidate, stream_candidate_tile<T>);
      break;
    case kStreamRnnTanh:
    case kStreamRnnRelu:
      stream_tiles(runtime, rows, packed.gates, stream_rnn_tile<T>);
  }
  T* h_t = static_cast<T*>(step.output);
  if (layer.proj_size) {
    const int64_t work = product_work(layer.batch, layer.hidden_size, layer.proj_size);
    share_step(runtime, packed.projected.count, work, [&](int64_t begin, int64_t end) {
      multiply<T, T>(matrix_rows<const T>(rows.h_t, layer.hidden_size),
                     matrix_rows(h_t, layer.proj_size), 0, layer.batch, packed.projected,
                     {begin, end}, packed.weight_hr, nullptr);
    });
  }
  memcpy(step.h, h_t, sizeof(T) * static_cast<size_t>(layer.batch * packed.state_size));
}

}  // namespace
}  // namespace rnnfast

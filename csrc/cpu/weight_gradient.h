// The product over all rows of a sequence: gradients of weights and biases.
#pragma once

#include "cpu/phases.h"
#include "cpu/tile.h"

namespace rnnfast {
namespace {

// One right-hand side of weight_gradient: out [columns of a, columns] = a^T * b.
template <class T>
struct GradientPart {
  Rows<const T> b;
  int64_t columns;
  void* out;  // contiguous, its elements of `type`
  Storage type;

  void* out_at(int64_t element) const {
    return out ? static_cast<char*>(out) + element * element_bytes<T>(type) : nullptr;
  }
};

// How weight_gradient cuts its work: rows packed at once, and the columns of a that a thread packs.
constexpr int64_t kRowBlock = 512;
constexpr int64_t kColumnBlock = 48;
constexpr int kMostParts = 2;

// packed_a [groups of depth][kColumnBlock] = columns [column, column + columns) of rows row,
// row - 1, ... of a. Rows whose turn is soon are asked for meanwhile.
template <class P>
void pack_transposed(const Rows<const P>& a, int64_t row, int64_t depth, int64_t column,
                     int64_t columns, Sum<P>* packed_a) {
  typedef Sum<P> T;
  constexpr int width = Vector<T>::width;
  constexpr int group = kGroup<P>;
  constexpr int64_t kAhead = 8 * group, kLine = 64 / sizeof(P);
  for (int64_t k = 0; k < groups<P>(depth); ++k) {
    T* to = packed_a + k * kColumnBlock;
    for (int i = 0; i < group; ++i) {
      const P* soon = a[row - min_of(k * group + i + kAhead, depth - 1)] + column;
      for (int64_t m = 0; m < columns; m += kLine) __builtin_prefetch(soon + m);
    }
    if constexpr (group == 1) {
      const T* from = a[row - k] + column;
      for (int64_t m = 0; m < kColumnBlock; m += width)
        store(to + m, load_first(from + m, max_of(0, min_of(width, columns - m))));
    } else {
      for (int64_t m = 0; m < kColumnBlock; m += width) {
        const int64_t valid = max_of(0, min_of(width, columns - m));
        Vec<T> x[group];
        for (int i = 0; i < group; ++i)
          x[i] = k * group + i < depth ? load_first(a[row - k * group - i] + column + m, valid)
                                       : Vec<T>{};
        store(to + m, join<P>(x));
      }
    }
  }
}

// sum[m] = the sum of `depth` rows of packed_a, in blocks of kSumBlock.
template <class P>
void sum_rows(const Sum<P>* packed_a, int64_t depth, Sum<P>* sum) {
  const int64_t lanes = groups<P>(depth);
  for (int64_t m = 0; m < kColumnBlock; ++m) sum[m] = 0;
  for (int64_t block = 0; block < lanes; block += kSumBlock) {
    Sum<P> part[kColumnBlock] = {};
    for (int64_t k = block; k < min_of(lanes, block + kSumBlock); ++k)
      for (int i = 0; i < kGroup<P>; ++i)
        for (int64_t m = 0; m < kColumnBlock; ++m)
          part[m] += element<P>(packed_a[k * kColumnBlock + m], i);
    for (int64_t m = 0; m < kColumnBlock; ++m) sum[m] += part[m];
  }
}

// out (rows of panels.columns, elements of `type`) = what `sums` hold, if they are added to, plus
// packed_a^T, of which `columns` count, times packed b.
template <class P, class T>
void multiply_transposed(const T* packed_a, int64_t columns, int64_t depth, const Panels<T>& panels,
                         const T* packed_b, bool add, const T* sums, Storage type, void* out) {
  constexpr int width = Vector<T>::width;
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t vectors = panels.vectors(p);
    const T* panel = packed_b + panels.offset(groups<P>(depth), p);
    const int64_t lane_bytes = vectors * width * static_cast<int64_t>(sizeof(T));
    const int64_t panel_bytes = groups<P>(depth) * lane_bytes;
    const char* after = reinterpret_cast<const char*>(panel) + panel_bytes;
    for_each_tile(0, columns, vectors, [&](int64_t first, int64_t count) {
      Tile<T> tile;
      const P* columns_of_a[kMaxRows];
      for (int64_t m = 0; m < count; ++m) {
        columns_of_a[m] = reinterpret_cast<const P*>(packed_a + first + m);
        // The product hides the time that the sums so far take to arrive.
        for (int64_t v = 0; v < vectors; ++v)
          __builtin_prefetch(sums + (first + m) * panels.columns + panels.column(p, v), 1);
      }
      tile_kernel<P>(vectors, count)(
          depth, sum_block<P>(depth), columns_of_a, kColumnBlock * kGroup<P>, panel,
          vectors * width, {after + first * panel_bytes / columns, lane_bytes * count / columns},
          zero_start<T>(), tile.at);
      for (int64_t m = 0; m < count; ++m)
        for (int64_t v = 0; v < vectors; ++v) {
          const int64_t at = (first + m) * panels.columns + panels.column(p, v);
          const int64_t valid = panels.valid(p, v);
          Vec<T> sum = load(tile.at + (m * vectors + v) * width);
          if (add) sum = load_first(sums + at, valid) + sum;
          store_stored<T>(type, out, at, sum, valid);
        }
    });
  }
}

// out = a^T b for each part, and bias_out = sum of a over rows (null: not wanted). `a` is rows x
// columns starting at a.base, b has as many rows. Blocks of kRowBlock rows are packed on both sides
// and added up from the last row to the first, as backward meets them: an initial state is often
// much larger than the states after it, and a large term costs least when it comes last. Threads
// share the columns of a, so sums never cross threads.
template <class P, class T>
void weight_gradient(const Runtime& runtime, const Rows<const P>& a, int64_t rows, int64_t columns,
                     const GradientPart<T>* parts, int part_count, T* bias_out) {
  int64_t most = 0, columns_of_b = 0;
  T* sums[kMostParts];  // of all blocks but the last
  for (int i = 0; i < part_count; ++i) {
    const int64_t count = columns * parts[i].columns;
    columns_of_b += parts[i].columns;
    most += Panels<T>(parts[i].columns, 1).packed_size(groups<P>(kRowBlock));
    if (rows == 0)
      memset(parts[i].out, 0, static_cast<size_t>(count * element_bytes<T>(parts[i].type)));
    const bool own = parts[i].type == Storage::own || rows <= kRowBlock;
    sums[i] = own ? static_cast<T*>(parts[i].out) : allocate<T>(runtime, count);
  }
  if (rows == 0 && bias_out) set_or_zero<T>(nullptr, bias_out, columns);
  T* packed = allocate<T>(runtime, most);
  const int64_t shares =
      ceil_div(ceil_div(columns, kColumnBlock), runtime.num_threads) * runtime.num_threads;
  const int64_t share = ceil_div(columns, shares);

  // Of each block of rows, all of b is packed, then multiplied.
  const auto depth_of = [&](int64_t block) { return min_of(kRowBlock, rows - block * kRowBlock); };
  const auto tasks = [&](int64_t phase) {
    return phase % 2 ? shares : groups<P>(depth_of(phase / 2));
  };
  const auto body = [&](int64_t phase, int64_t begin, int64_t end) {
    const int64_t row = phase / 2 * kRowBlock, depth = depth_of(phase / 2);
    const int64_t last = rows - 1 - row;
    if (phase % 2 == 0) {
      T* to = packed;
      for (int i = 0; i < part_count; ++i) {
        const Panels<T> panels(parts[i].columns, 1);
        pack_panels<P>(panels, 0, panels.count, RowsInTurn(parts[i].b, last, -1, depth), begin, end,
                       to);
        to += panels.packed_size(groups<P>(depth));
      }
      return;
    }
    alignas(64) T packed_a[groups<P>(kRowBlock) * kColumnBlock];
    for (int64_t m = begin * share; m < min_of(columns, end * share); m += share) {
      const int64_t count = min_of(share, columns - m);
      pack_transposed(a, last, depth, m, count, packed_a);
      if (bias_out) {
        T sum[kColumnBlock];
        sum_rows<P>(packed_a, depth, sum);
        for (int64_t c = 0; c < count; ++c)
          bias_out[m + c] = row == 0 ? sum[c] : bias_out[m + c] + sum[c];
      }
      const T* from = packed;
      for (int i = 0; i < part_count; ++i) {
        const Panels<T> panels(parts[i].columns, 1);
        T* sum = sums[i] + m * panels.columns;
        const bool done = row + depth == rows;
        multiply_transposed<P>(packed_a, count, depth, panels, from, row > 0, sum,
                               done ? parts[i].type : Storage::own,
                               done ? parts[i].out_at(m * panels.columns) : sum);
        from += panels.packed_size(groups<P>(depth));
      }
    }
  };
  const int64_t blocks = ceil_div(rows, kRowBlock);
  const int64_t work = min_of(rows, kRowBlock) * columns * (columns_of_b + 1);
  for_each_phase(runtime, 2 * blocks, work / 2, tasks, body);
}

}  // namespace
}  // namespace rnnfast

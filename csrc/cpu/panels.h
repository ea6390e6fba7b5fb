// Rows of a sequence, and the panels that a matrix is packed into.
//
// The right-hand matrix B [depth, columns] of a product is packed once into panels of up to four
// vectors of columns: panel p holds, for k = 0, 1, ..., its vectors side by side, padded with zeros
// to whole vectors. Of operands in bfloat16 (operand.h) a lane holds two k.
#pragma once

#include "cpu/stored.h"

namespace rnnfast {
namespace {

constexpr int kMaxVectors = 4;

// Rows of a sequence or matrix: row r is r % inner rows of inner_stride after r / inner of
// outer_stride. Where `head` is set, the first `inner` rows stand there (contiguous) and row r is
// row r - inner of base: the states before each step are h_0 followed by the outputs. Where `table`
// is set, it tells where each row stands.
template <class T>
struct Rows {
  T* base = nullptr;
  int64_t inner = 0, outer_stride = 0, inner_stride = 0;
  T* const* table = nullptr;
  T* head = nullptr;
  int64_t head_stride = 0;

  T* operator[](int64_t r) const {
    if (table) return table[r];
    if (head) {
      if (r < inner) return head + r * head_stride;
      r -= inner;
    }
    if (r < inner) return base + r * inner_stride;
    return base + (r / inner) * outer_stride + (r % inner) * inner_stride;
  }
};

template <class T>
Rows<T> matrix_rows(T* base, int64_t stride) {
  return {base, INT64_MAX, 0, stride};
}

template <class T>
Rows<T> row_table(T* const* table) {
  Rows<T> rows;
  rows.table = table;
  return rows;
}

// How the columns of a packed matrix are cut into panels.
// gates == 1: plain columns, the vectors spread evenly over panels of at most kMaxVectors.
// gates  > 1: panel p holds vector p of each gate's `columns`, so that a tile has all gates of its
// units; the matrix has gates * columns columns, a gate's columns side by side.
template <class T>
struct Panels {
  static constexpr int width = Vector<T>::width;
  int64_t columns, gates, all_vectors, count;
  uint64_t spread;  // all_vectors / count, times 2^32, rounded up

  // `shares`: into how many parts of about the same size panels will be dealt out, if there are
  // enough.
  Panels(int64_t columns_, int64_t gates_, int64_t shares = 1)
      : columns(columns_), gates(gates_), all_vectors(ceil_div(columns_, width)) {
    count = gates > 1 ? all_vectors : ceil_div(all_vectors, kMaxVectors);
    if (gates == 1 && all_vectors >= kMaxVectors * shares) count = ceil_div(count, shares) * shares;
    spread = count ? ((static_cast<uint64_t>(all_vectors) << 32) + count - 1) / count : 0;
  }
  int64_t vectors(int64_t p) const { return gates > 1 ? gates : first(p + 1) - first(p); }
  // Vectors before panel p. Where there are fewer than 2^16 panels, p all_vectors / count.
  int64_t first(int64_t p) const {
    return gates > 1 ? p * gates : static_cast<int64_t>(static_cast<uint64_t>(p) * spread >> 32);
  }
  int64_t total() const { return first(count); }
  // The first matrix column of vector v of panel p, and how many of its lanes are real.
  int64_t column(int64_t p, int64_t v) const {
    return gates > 1 ? v * columns + p * width : (first(p) + v) * width;
  }
  int64_t valid(int64_t p, int64_t v) const {
    return min_of(width, columns - (gates > 1 ? p : first(p) + v) * width);
  }
  int64_t packed_size(int64_t depth) const { return total() * width * depth; }
  // Where panel p begins in a packed matrix of that depth.
  int64_t offset(int64_t depth, int64_t p) const { return first(p) * width * depth; }
};

// A panel, and the one whose turn comes after it.
template <class T>
struct PanelPlace {
  const Panels<T>& panels;
  int64_t p, next;

  PanelPlace(const Panels<T>& panels_, int64_t p_) : PanelPlace(panels_, p_, p_ + 1) {}
  PanelPlace(const Panels<T>& panels_, int64_t p_, int64_t next_)
      : panels(panels_), p(p_), next(next_) {}
};

// Panels [begin, end), in their order or the other way round.
struct PanelRange {
  int64_t begin, end;
  bool backwards = false;

  // Calls body(place) for each. After the last one it may be that one's turn again.
  template <class T, class Body>
  RNNFAST_INLINE void for_each(const Panels<T>& panels, const Body& body) const {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = backwards ? begin + end - 1 - i : i;
      body(PanelPlace<T>(panels, p, i + 1 == end ? p : backwards ? p - 1 : p + 1));
    }
  }
};

// Neighbouring lanes hold the n elements at p, whatever they are stored as.
template <class P, class S>
RNNFAST_INLINE Vec<Sum<P>> load_groups(const S* p, int64_t n) {
  constexpr int width = Vector<Sum<P>>::width;
  if constexpr (kGroup<P> == 1) return load_first(p, n);
  if constexpr (kGroup<P> > 1)
    return join_groups<P>(load_first(p, min_of(n, width)),
                          n > width ? load_first(p + width, n - width) : Vec<Sum<P>>{});
}

// Packs B given by its columns: column c is `depth` contiguous elements at source + c * stride
// (a torch weight [columns, depth]).
template <class P, class T, class S>
void pack_columns(const Runtime& runtime, const Panels<T>& panels, const S* source, int64_t stride,
                  int64_t depth, T* packed) {
  constexpr int width = Vector<T>::width;
  const int64_t lanes = groups<P>(depth);
  const int64_t work = panels.packed_size(depth) * kMoveWork;
  parallel(runtime, panels.count, work, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t step = panels.vectors(p) * width;
      for (int64_t v = 0; v < panels.vectors(p); ++v) {
        const S* from = source + panels.column(p, v) * stride;
        const int64_t valid = panels.valid(p, v);
        // The columns whose turn is next are asked for meanwhile: a column is too short for the
        // processor to foresee.
        const bool is_last = v + 1 == panels.vectors(p);
        const int64_t next_p = is_last ? p + 1 : p, next_v = is_last ? 0 : v + 1;
        const int64_t coming = next_p < end ? panels.valid(next_p, next_v) : 0;
        const S* next = source + (coming ? panels.column(next_p, next_v) : 0) * stride;
        T* to = packed + panels.offset(lanes, p) + v * width;
        for (int64_t k = 0; k < lanes; k += width) {
          const int64_t left = min_of(width * kGroup<P>, depth - k * kGroup<P>);
          const int64_t n = groups<P>(left);
          for (int64_t j = 0; j < coming; ++j)
            for (int i = 0; i < kGroup<P>; ++i)
              __builtin_prefetch(next + j * stride + k * kGroup<P> + i * width);
          Vec<T> x[width];
#pragma GCC unroll 16
          for (int64_t j = 0; j < width; ++j)
            x[j] = j < valid ? load_groups<P>(from + j * stride + k * kGroup<P>, left) : Vec<T>{};
          transpose<T>(x);
#pragma GCC unroll 16
          for (int64_t j = 0; j < width; ++j)
            if (j < n) store(to + (k + j) * step, x[j]);
        }
      }
    }
  });
}

// Rows `first`, first + step, ... of a matrix.
template <class S>
struct RowsInTurn {
  Rows<const S> rows;
  int64_t first, step, count;

  RowsInTurn(const Rows<const S>& rows_, int64_t first_, int64_t step_, int64_t count_)
      : rows(rows_), first(first_), step(step_), count(count_) {}
  const S* operator[](int64_t i) const { return rows[first + i * step]; }
};

// Packs B given by its rows: those of some panels, and of some lanes of these. Rows whose turn is
// soon are asked for meanwhile: a row is too short for the processor to foresee the next.
template <class P, class T, class S>
void pack_panels(const Panels<T>& panels, int64_t panel_begin, int64_t panel_end,
                 const RowsInTurn<S>& source, int64_t lane_begin, int64_t lane_end, T* packed) {
  constexpr int width = Vector<T>::width;
  constexpr int group = kGroup<P>;
  constexpr int64_t kAhead = 2 * group;
  for (int64_t k = lane_begin; k < lane_end; ++k) {
    const S *from[group], *soon[group];
    for (int i = 0; i < group; ++i) {
      const int64_t at = k * group + i;
      from[i] = at < source.count ? source[at] : nullptr;
      soon[i] = source[min_of(at + kAhead, source.count - 1)];
    }
    for (int64_t p = panel_begin; p < panel_end; ++p) {
      const int64_t vectors = panels.vectors(p);
      T* to = packed + panels.offset(groups<P>(source.count), p) + k * vectors * width;
      for (int64_t v = 0; v < vectors; ++v) {
        const int64_t column = panels.column(p, v), valid = panels.valid(p, v);
        Vec<T> x[group];
        for (int i = 0; i < group; ++i) {
          __builtin_prefetch(soon[i] + column);
          x[i] = from[i] ? load_first(from[i] + column, valid) : Vec<T>{};
        }
        store(to + v * width, join<P>(x));
      }
    }
  }
}

// The same for all panels, on all threads.
template <class P, class T, class S>
void pack_rows(const Runtime& runtime, const Panels<T>& panels, const RowsInTurn<S>& source,
               T* packed) {
  const int64_t lanes = groups<P>(source.count),
                work = panels.packed_size(source.count) * kMoveWork;
  parallel(runtime, panels.count, work, [&](int64_t begin, int64_t end) {
    pack_panels<P>(panels, begin, end, source, 0, lanes, packed);
  });
}

}  // namespace
}  // namespace rnnfast

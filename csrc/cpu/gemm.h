// Products of rows with a matrix, packed or where it stands.
//
// Packing costs as much as a product with a few rows. A matrix that is used once, by a sequence of
// one step, is therefore read where it stands (Matrix): by its columns, as sums of whole vectors
// over k that are added up at the end, or by its rows, as a panel whose rows are far apart.
#pragma once

#include "cpu/tile.h"

namespace rnnfast {
namespace {

// Depth of a panel's share that stays in the cache while many rows pass by it.
template <class P>
constexpr int64_t kProductDepth = 768 * kGroup<P>;

// A right-hand matrix [depth, columns]: packed, or read where it stands.
template <class P>
struct Matrix {
  typedef Sum<P> T;
  int64_t depth;
  const T* packed = nullptr;      // all panels
  const T* by_columns = nullptr;  // column c is contiguous, at by_columns + c * depth
  const T* by_rows = nullptr;     // row k is contiguous, at by_rows + k * row_stride;
  int64_t row_stride = 0;
  const T* last_panel = nullptr;  // and the last panel, if it ends inside a vector, is packed

  // tile = start + rows [first, first + count) of a, from a_offset on, times a panel. A panel's
  // share of block_depth() passes by all rows before the next, which they ask for meanwhile.
  void multiply(const Rows<const P>& a, int64_t a_offset, int64_t first, int64_t count,
                const PanelPlace<T>& place, Start<T> start, T* tile) const {
    const int64_t block = block_depth();
    for (int64_t k = 0; k == 0 || k < depth; k += block) {
      multiply_block(a, a_offset, first, count, place, k, min_of(depth, k + block), 0, count, start,
                     tile);
      start = {tile, place.panels.vectors(place.p) * Vector<T>::width};
    }
  }

  // tile += the same.
  void accumulate(const Rows<const P>& a, int64_t a_offset, int64_t first, int64_t count,
                  const PanelPlace<T>& place, T* tile) const {
    multiply(a, a_offset, first, count, place,
             {tile, place.panels.vectors(place.p) * Vector<T>::width}, tile);
  }

  // The same for k in [k_begin, k_end); a block begins at a multiple of block_depth(). Of `all`
  // rows that pass by it, `passed` did before these.
  void multiply_block(const Rows<const P>& a, int64_t a_offset, int64_t first, int64_t count,
                      const PanelPlace<T>& place, int64_t k_begin, int64_t k_end, int64_t passed,
                      int64_t all, Start<T> start, T* tile) const {
    const Panels<T>& panels = place.panels;
    const int64_t p = place.p;
    const int64_t vectors = panels.vectors(p);
    int64_t step = vectors * Vector<T>::width;
    if (k_begin == k_end) {
      for (int64_t m = 0; m < count; ++m)
        memmove(tile + m * step, start.at + m * start.step, sizeof(T) * static_cast<size_t>(step));
      return;
    }
    const T* panel = packed ? packed + panels.offset(groups<P>(depth), p) : last_panel;
    if (by_rows && !(last_panel && p + 1 == panels.count)) {
      panel = by_rows + panels.column(p, 0);
      step = row_stride;
    }
    panel += k_begin / kGroup<P> * step;
    const int64_t lanes = groups<P>(k_end - k_begin);
    const int64_t lane_bytes = packed ? step * static_cast<int64_t>(sizeof(T)) : 0;
    const T* after = panel;
    if (packed)
      after = k_end < depth ? panel + lanes * step
                            : packed + panels.offset(groups<P>(depth), place.next);
    for_each_tile(0, count, vectors, [&](int64_t m, int64_t height) {
      const P* rows[kMaxRows] = {};
      for (int64_t i = 0; i < height; ++i) rows[i] = a[first + m + i] + a_offset + k_begin;
      const Start<T> from{start.at + m * start.step, start.step};
      T* to = tile + m * vectors * Vector<T>::width;
      if constexpr (kGroup<P> == 1)
        if (by_columns) return multiply_dots(rows, height, panels, p, from, to);
      // Where there is one tile it has no time for more.
      const int64_t ahead_bytes = height < all ? lane_bytes * height / all : 0;
      const Ahead ahead{
          reinterpret_cast<const char*>(after) + (passed + m) * lanes * lane_bytes / all,
          ahead_bytes};
      tile_kernel<P>(vectors, height)(k_end - k_begin, sum_block<P>(depth), rows, kGroup<P>, panel,
                                      step, ahead, from, to);
    });
  }

  // Into what depths a product with many rows is cut, so that a panel's share stays in the cache
  // while all rows pass by it. The order of every sum is that of an uncut one.
  int64_t block_depth() const {
    static_assert(kProductDepth<P> % sum_block<P>(kLongSum) == 0);
    return by_columns ? max_of(depth, 1) : kProductDepth<P>;
  }

 private:
  void multiply_dots(const T* const* rows, int64_t count, const Panels<T>& panels, int64_t p,
                     Start<T> start, T* tile) const {
    constexpr int width = Vector<T>::width;
    constexpr int group = kDotColumns<T>;
    const int64_t vectors = panels.vectors(p);
    for (int64_t v = 0; v < vectors; ++v) {
      const T* columns[width];  // beyond the last: any readable one, its lane is nobody's
      for (int64_t c = 0; c < width; ++c)
        columns[c] = by_columns + (panels.column(p, v) + min_of(c, panels.valid(p, v) - 1)) * depth;
      for (int64_t m = 0; m < count; m += kDotRows) {
        const int64_t height = min_of(kDotRows, count - m);
        Vec<T> sums[kDotRows * width];
        for (int c = 0; c < width; c += group)
          dot_kernel<T>(height)(depth, rows + m, columns + c, sums + c);
        for (int64_t i = 0; i < height; ++i) {
          store(tile + ((m + i) * vectors + v) * width,
                load(start.at + (m + i) * start.step + v * width) + sum_lanes<T>(sums + i * width));
        }
      }
    }
  }
};

// Least depth from which a matrix that is used once is read by its columns: with one row that takes
// about half the time of packing, with 64 rows as long. Below it the sums across lanes weigh more.
constexpr int64_t kDotDepth = 128;

// B given by its columns, as a torch weight [columns, depth] has them; `once`: used by one step
// only.
template <class P, class T>
Matrix<P> matrix_by_columns(const Runtime& runtime, const Panels<T>& panels,
                            const Stored<Sum<P>>& source, int64_t depth, bool once) {
  Matrix<P> matrix{depth};
  as_stored<T>(source.type, source.data, [&](const auto* from) {
    if constexpr (kGroup<P> == 1 && sizeof(*from) == sizeof(T))
      if (once && depth >= kDotDepth) {
        matrix.by_columns = from;
        return;
      }
    T* packed = allocate<T>(runtime, panels.packed_size(groups<P>(depth)));
    pack_columns<P>(runtime, panels, from, depth, depth, packed);
    matrix.packed = packed;
  });
  return matrix;
}

// B given by its rows, panels.columns apart.
template <class P, class T>
Matrix<P> matrix_by_rows(const Runtime& runtime, const Panels<T>& panels,
                         const Stored<Sum<P>>& source, int64_t depth, bool once) {
  Matrix<P> matrix{depth};
  as_stored<T>(source.type, source.data, [&](const auto* from) {
    const RowsInTurn rows(matrix_rows(from, panels.columns), 0, 1, depth);
    if constexpr (kGroup<P> == 1 && sizeof(*from) == sizeof(T)) {
      const bool whole = panels.columns % Panels<T>::width == 0;
      if (once && (whole || panels.count > 1)) {
        matrix.by_rows = from;
        matrix.row_stride = panels.columns;
        if (whole) return;
        const int64_t p = panels.count - 1;
        T* packed = allocate<T>(runtime, panels.packed_size(depth) - panels.offset(depth, p));
        pack_panels<P>(panels, p, panels.count, rows, 0, depth, packed - panels.offset(depth, p));
        matrix.last_panel = packed;
        return;
      }
    }
    T* packed = allocate<T>(runtime, panels.packed_size(groups<P>(depth)));
    pack_rows<P>(runtime, panels, rows, packed);
    matrix.packed = packed;
  });
  return matrix;
}

// out [row_begin..row_end, range of panels] = bias + a * B, on the calling thread.
// bias is packed like one row of B; null for zero.
template <class P, class T>
void multiply(const Rows<const P>& a, const Rows<T>& out, int64_t row_begin, int64_t row_end,
              const Panels<T>& panels, const PanelRange& range, const Matrix<P>& matrix,
              const T* bias) {
  constexpr int width = Vector<T>::width;
  const int64_t block = matrix.block_depth();
  range.for_each(panels, [&](const PanelPlace<T>& place) {
    const int64_t p = place.p, vectors = panels.vectors(p);
    const auto for_each_vector = [&](int64_t first, int64_t count, const auto& body) {
      for (int64_t m = 0; m < count; ++m)
        for (int64_t v = 0; v < vectors; ++v)
          body((m * vectors + v) * width, v, out[first + m] + panels.column(p, v));
    };
    for (int64_t k = 0; k == 0 || k < matrix.depth; k += block) {
      for_each_group(row_begin, row_end, [&](int64_t first, int64_t count) {
        Tile<T> tile;
        Start<T> start = bias ? Start<T>{bias + panels.first(p) * width, 0} : zero_start<T>();
        if (k > 0) {
          start = {tile.at, vectors * width};
          for_each_vector(first, count, [&](int64_t at, int64_t v, const T* from) {
            store(tile.at + at, load_first(from, panels.valid(p, v)));
          });
        }
        matrix.multiply_block(a, 0, first, count, place, k, min_of(matrix.depth, k + block),
                              first - row_begin, row_end - row_begin, start, tile.at);
        for_each_vector(first, count, [&](int64_t at, int64_t v, T* to) {
          store_first(to, load(tile.at + at), panels.valid(p, v));
        });
      });
    }
  });
}

// The same over all rows and panels, on all threads: rows are shared out where there are enough.
template <class P, class T>
void multiply_parallel(const Runtime& runtime, const Rows<const P>& a, const Rows<T>& out,
                       int64_t rows, const Panels<T>& panels, const Matrix<P>& matrix,
                       const T* bias) {
  const int64_t work = product_work(rows, matrix.depth, panels.columns * panels.gates);
  if (rows >= runtime.num_threads * 4 * kMaxRows) {
    parallel(runtime, rows, work, [&](int64_t begin, int64_t end) {
      multiply(a, out, begin, end, panels, {0, panels.count}, matrix, bias);
    });
  } else {
    parallel(runtime, panels.count, work, [&](int64_t begin, int64_t end) {
      multiply(a, out, 0, rows, panels, {begin, end}, matrix, bias);
    });
  }
}

}  // namespace
}  // namespace rnnfast

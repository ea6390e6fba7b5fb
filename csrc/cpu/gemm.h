// Matrix products for recurrent shapes: rows times a packed matrix, in one fixed order over k.
//
// The right-hand matrix B [depth, columns] is packed once into panels of up to four vectors of
// columns: panel p holds, for k = 0, 1, ..., its vectors side by side, padded with zeros to whole
// vectors. A tile of a few rows times one panel stays in registers: for each k, every row's element
// is broadcast and multiplied with the panel's vectors. Rows need no packing: only their start and
// a step over k. Of operands in bfloat16 (operand.h) a lane holds two k, and "element" reads
// "pair".
//
// Packing costs as much as a product with a few rows. A matrix that is used once, by a sequence of
// one step, is therefore read where it stands (Matrix): by its columns, as sums of whole vectors
// over k that are added up at the end, or by its rows, as a panel whose rows are far apart.
//
// Sums run over k in blocks, each from zero, then added to the tile: the error of a long sum stays
// small, as in libraries that sum in many lanes, and an element's bits depend on its row and its
// column alone, never on the tile, the batch or the thread it was computed in.
#pragma once

#include "cpu/operand.h"
#include "runtime.h"

namespace rnnfast {
namespace {

// Depths of a block: long sums take larger ones, of which fewer are added (2 % of the time).
constexpr int64_t kSumBlock = 32, kLongSumBlock = 64, kLongSum = 128;
constexpr int kMaxVectors = 4;
constexpr int kMaxRows = 8;
// Rows that pass by a panel together, in several tiles, and the height from which a tile has time
// to ask for what comes after.
constexpr int64_t kGroupRows = 48;
constexpr int kRowsAhead = 3;

// What rounding operands to bfloat16 costs is far above what the order of a sum does.
constexpr int64_t kBf16SumBlock = 256;

template <class P>
constexpr int64_t sum_block(int64_t depth) {
  if (kGroup<P> > 1) return kBf16SumBlock;
  return depth < kLongSum ? kSumBlock : kLongSumBlock;
}

// Depth of a panel's share that stays in the cache while many rows pass by it.
template <class P>
constexpr int64_t kProductDepth = 768 * kGroup<P>;

RNNFAST_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
RNNFAST_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
RNNFAST_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Multiply-adds below which a second thread costs more than it brings: about 4 microseconds of
// them, some times what it takes to start and end a parallel region.
constexpr int64_t kParallelWork = 1 << 18;

// Cuts [0, tasks) by Runtime and calls body(begin, end); inline where there is not enough work,
// counted in multiply-adds, to share.
template <class Body>
void parallel(const Runtime& runtime, int64_t tasks, int64_t work, const Body& body) {
  if (tasks <= 0) return;
  if (runtime.num_threads <= 1 || tasks == 1 || work < kParallelWork)
    return body(int64_t{0}, tasks);
  runtime.run(
      &runtime, tasks,
      [](void* argument, int64_t begin, int64_t end) {
        (*static_cast<const Body*>(argument))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// The work of rows times a matrix. One row alone waits for the matrix to arrive: it counts twice.
RNNFAST_INLINE int64_t product_work(int64_t rows, int64_t depth, int64_t columns) {
  return max_of(rows, 2) * depth * columns;
}

// Moving an element takes about as long as this many multiply-adds.
constexpr int64_t kMoveWork = 16;

template <class T>
T* allocate(const Runtime& runtime, int64_t count) {
  return static_cast<T*>(runtime.allocate(&runtime, static_cast<size_t>(count) * sizeof(T)));
}

// to = from, or zero where from is null.
template <class T>
void set_or_zero(const T* from, T* to, int64_t count) {
  const size_t bytes = sizeof(T) * static_cast<size_t>(count);
  if (from)
    memcpy(to, from, bytes);
  else
    memset(to, 0, bytes);
}

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

  // `shares`: into how many parts of about the same size panels will be dealt out, if there are
  // enough.
  Panels(int64_t columns_, int64_t gates_, int64_t shares = 1)
      : columns(columns_), gates(gates_), all_vectors(ceil_div(columns_, width)) {
    count = gates > 1 ? all_vectors : ceil_div(all_vectors, kMaxVectors);
    if (gates == 1 && all_vectors >= kMaxVectors * shares) count = ceil_div(count, shares) * shares;
  }
  int64_t vectors(int64_t p) const { return gates > 1 ? gates : first(p + 1) - first(p); }
  // Vectors before panel p.
  int64_t first(int64_t p) const {
    return gates > 1 ? p * gates : count ? p * all_vectors / count : 0;
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

// Packs B given by its columns: column c is `depth` contiguous elements at source + c * stride
// (a torch weight [columns, depth]).
template <class P, class T>
void pack_columns(const Runtime& runtime, const Panels<T>& panels, const T* source, int64_t stride,
                  int64_t depth, T* packed) {
  constexpr int width = Vector<T>::width;
  const int64_t lanes = groups<P>(depth);
  const int64_t work = panels.packed_size(depth) * kMoveWork;
  parallel(runtime, panels.count, work, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t step = panels.vectors(p) * width;
      for (int64_t v = 0; v < panels.vectors(p); ++v) {
        const T* from = source + panels.column(p, v) * stride;
        const int64_t valid = panels.valid(p, v);
        T* to = packed + panels.offset(lanes, p) + v * width;
        for (int64_t k = 0; k < lanes; k += width) {
          const int64_t left = min_of(width * kGroup<P>, depth - k * kGroup<P>);
          const int64_t n = groups<P>(left);
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

// Packs rows row, row + step, ... (depth of them) of B, for some panels.
template <class P, class T>
void pack_panels(const Panels<T>& panels, int64_t panel_begin, int64_t panel_end,
                 const Rows<const T>& source, int64_t row, int64_t step, int64_t depth, T* packed) {
  constexpr int width = Vector<T>::width;
  constexpr int group = kGroup<P>;
  for (int64_t k = 0; k < groups<P>(depth); ++k) {
    const T* from[group];
    for (int i = 0; i < group; ++i)
      from[i] = k * group + i < depth ? source[row + (k * group + i) * step] : nullptr;
    for (int64_t p = panel_begin; p < panel_end; ++p) {
      const int64_t vectors = panels.vectors(p);
      T* to = packed + panels.offset(groups<P>(depth), p) + k * vectors * width;
      for (int64_t v = 0; v < vectors; ++v) {
        Vec<T> x[group];
        for (int i = 0; i < group; ++i)
          x[i] = from[i] ? load_first(from[i] + panels.column(p, v), panels.valid(p, v)) : Vec<T>{};
        store(to + v * width, join<P>(x));
      }
    }
  }
}

// The same for all panels, on all threads.
template <class P, class T>
void pack_rows(const Runtime& runtime, const Panels<T>& panels, const Rows<const T>& source,
               int64_t row, int64_t step, int64_t depth, T* packed) {
  const int64_t work = panels.packed_size(depth) * kMoveWork;
  parallel(runtime, panels.count, work, [&](int64_t begin, int64_t end) {
    pack_panels<P>(panels, begin, end, source, row, step, depth, packed);
  });
}

// Where a tile's sums begin: row m of the tile at `at + m * step`.
template <class T>
struct Start {
  const T* at;
  int64_t step;
};

// From zero.
template <class T>
Start<T> zero_start() {
  alignas(64) static constexpr T zeros[kMaxVectors * Vector<T>::width] = {};
  return {zeros, 0};
}

// What a tile asks the memory for while it multiplies: from `at` on, so many bytes for each lane.
struct Ahead {
  const char* at;
  int64_t bytes;
};

// Nothing: what is there already.
inline Ahead nothing_ahead(const void* here) { return {static_cast<const char*>(here), 0}; }

// tile [rows][vectors][width] = start + a [rows, depth] * panel [depth][vectors][width], depth > 0,
// summed in blocks of `block`; a_step leads from one group of a row to the next, panel_step from
// one lane of a column to the next.
template <class P, int vectors, int rows>
void multiply_tile(int64_t depth, int64_t block, const P* const* a, int64_t a_step,
                   const Sum<P>* panel, int64_t panel_step, Ahead ahead, Start<Sum<P>> start,
                   Sum<P>* tile) {
  typedef Sum<P> T;
  constexpr int width = Vector<T>::width;
  const P* row[rows];
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) row[m] = a[m];
  for (int64_t left = depth; left > 0; left -= block) {
    Vec<T> sum[rows][vectors];
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[m][v] = Vec<T>{};
    int64_t at = 0;
    const auto add = [&](auto broadcast_at) __attribute__((always_inline)) {
      if constexpr (rows >= kRowsAhead) {
        __builtin_prefetch(ahead.at, 0, 2);
        ahead.at += ahead.bytes;
      }
      Vec<T> b[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) b[v] = load(panel + v * width);
#pragma GCC unroll 8
      for (int m = 0; m < rows; ++m) {
        const Vec<T> x = broadcast_at(row[m] + at);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[m][v] = multiply_add<P>(x, b[v], sum[m][v]);
      }
      panel += panel_step;
      at += a_step;
    };
    const int64_t steps = min_of(left, block) / kGroup<P>;
#pragma GCC unroll 1
    for (int64_t k = 0; k < steps; ++k) add([](const P* p) { return broadcast_group(p); });
    if constexpr (kGroup<P> > 1)
      if (min_of(left, block) % kGroup<P>) add([](const P* p) { return broadcast_last(p); });
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) row[m] += at;
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        store(tile + (m * vectors + v) * width,
              load(start.at + m * start.step + v * width) + sum[m][v]);
      }
    start = {tile, vectors * width};
    // Keeps the compiler from holding the whole tile in registers from block to block, and
    // spilling.
    __asm__ volatile("" ::: "memory");
  }
}

// Most rows whose sums, with the panel's vectors and one broadcast, stay in registers.
constexpr int max_rows(int64_t vectors) {
  return static_cast<int>(kVectorRegisters == 32 ? (vectors == 4 ? 6 : 8)
                                                 : (vectors == 1   ? 8
                                                    : vectors == 2 ? 6
                                                    : vectors == 3 ? 4
                                                                   : 3));
}

template <class P>
using TileKernel = void (*)(int64_t, int64_t, const P* const*, int64_t, const Sum<P>*, int64_t,
                            Ahead, Start<Sum<P>>, Sum<P>*);

template <class P, int vectors>
TileKernel<P> tile_kernel_of(int64_t rows) {
  constexpr int most = max_rows(vectors);
  switch (rows) {
    case 1:
      return multiply_tile<P, vectors, 1>;
    case 2:
      return multiply_tile<P, vectors, 2>;
    case 3:
      return multiply_tile<P, vectors, 3>;
    case 4:
      return multiply_tile < P, vectors, most < 4 ? most : 4 > ;
    case 5:
      return multiply_tile < P, vectors, most < 5 ? most : 5 > ;
    case 6:
      return multiply_tile < P, vectors, most < 6 ? most : 6 > ;
    case 7:
      return multiply_tile < P, vectors, most < 7 ? most : 7 > ;
    default:
      return multiply_tile < P, vectors, most < 8 ? most : 8 > ;
  }
}

template <class P>
TileKernel<P> tile_kernel(int64_t vectors, int64_t rows) {
  switch (vectors) {
    case 1:
      return tile_kernel_of<P, 1>(rows);
    case 2:
      return tile_kernel_of<P, 2>(rows);
    case 3:
      return tile_kernel_of<P, 3>(rows);
    default:
      return tile_kernel_of<P, 4>(rows);
  }
}

// The sums of a group of rows.
template <class T>
struct alignas(64) Tile {
  T at[kGroupRows * kMaxVectors * Vector<T>::width];
};

// Calls body(first, count) over [begin, end) in groups of nearly equal size.
template <class Body>
RNNFAST_INLINE void for_each_group(int64_t begin, int64_t end, const Body& body) {
  const int64_t groups = ceil_div(end - begin, kGroupRows);
  for (int64_t i = 0, first = begin; i < groups; ++i) {
    const int64_t count = (end - first) / (groups - i);
    body(first, count);
    first += count;
  }
}

// Calls body(first, count) over [begin, end) in tiles of nearly equal height for panels that wide.
template <class Body>
RNNFAST_INLINE void for_each_tile(int64_t begin, int64_t end, int64_t vectors, const Body& body) {
  const int64_t tiles = ceil_div(end - begin, max_rows(vectors));
  for (int64_t i = 0, first = begin; i < tiles; ++i) {
    const int64_t count = (end - first) / (tiles - i);
    body(first, count);
    first += count;
  }
}

// sums[m * width + c] = the products of a's row m with b's column c, added up over k within each
// lane.
template <class T, int rows, int columns>
void dot_tile(int64_t depth, const T* const* a, const T* const* b, Vec<T>* sums) {
  constexpr int width = Vector<T>::width;
  Vec<T> sum[rows][columns];
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) sum[m][c] = Vec<T>{};
  const auto add = [&](int64_t k, auto load_at) __attribute__((always_inline)) {
    Vec<T> y[columns];
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) y[c] = load_at(b[c] + k);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      const Vec<T> x = load_at(a[m] + k);
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) sum[m][c] = fma(x, y[c], sum[m][c]);
    }
  };
  int64_t k = 0;
#pragma GCC unroll 1
  for (; k + width <= depth; k += width) add(k, [](const T* p) { return load(p); });
  if (k < depth) add(k, [&](const T* p) { return load_first(p, depth - k); });
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) sums[m * width + c] = sum[m][c];
}

template <class T>
using DotKernel = void (*)(int64_t, const T* const*, const T* const*, Vec<T>*);

constexpr int kDotRows = kVectorRegisters == 32 ? 6 : 3;
// Columns at once; a vector of them is a whole number of such groups.
template <class T>
constexpr int kDotColumns = Vector<T>::width < 4 ? Vector<T>::width : 4;

template <class T>
DotKernel<T> dot_kernel(int64_t rows) {
  switch (rows) {
    case 1:
      return dot_tile<T, 1, kDotColumns<T>>;
    case 2:
      return dot_tile<T, 2, kDotColumns<T>>;
    case 3:
      return dot_tile<T, 3, kDotColumns<T>>;
    case 4:
      return dot_tile < T, kDotRows < 4 ? kDotRows : 4, kDotColumns < T >> ;
    case 5:
      return dot_tile < T, kDotRows < 5 ? kDotRows : 5, kDotColumns < T >> ;
    default:
      return dot_tile<T, kDotRows, kDotColumns<T>>;
  }
}

// A right-hand matrix [depth, columns]: packed, or read where it stands.
template <class P>
struct Matrix {
  typedef Sum<P> T;
  int64_t depth;
  const T* packed = nullptr;      // all panels
  const T* by_columns = nullptr;  // column c is contiguous, at by_columns + c * depth
  const T* by_rows = nullptr;     // row k is contiguous, at by_rows + k * row_stride;
  int64_t row_stride = 0;
  const T* last_panel = nullptr;  // and the last panel, which may end inside a vector, is packed

  // tile = start + rows [first, first + count) of a, from a_offset on, times panel p. A panel's
  // share of block_depth() passes by all rows before the next, which they ask for meanwhile.
  void multiply(const Rows<const P>& a, int64_t a_offset, int64_t first, int64_t count,
                const Panels<T>& panels, int64_t p, Start<T> start, T* tile) const {
    const int64_t block = block_depth();
    for (int64_t k = 0; k == 0 || k < depth; k += block) {
      multiply_block(a, a_offset, first, count, panels, p, k, min_of(depth, k + block), 0, count,
                     start, tile);
      start = {tile, panels.vectors(p) * Vector<T>::width};
    }
  }

  // tile += the same.
  void accumulate(const Rows<const P>& a, int64_t a_offset, int64_t first, int64_t count,
                  const Panels<T>& panels, int64_t p, T* tile) const {
    multiply(a, a_offset, first, count, panels, p, {tile, panels.vectors(p) * Vector<T>::width},
             tile);
  }

  // The same for k in [k_begin, k_end); a block begins at a multiple of block_depth(). Of `all`
  // rows that pass by it, `passed` did before these.
  void multiply_block(const Rows<const P>& a, int64_t a_offset, int64_t first, int64_t count,
                      const Panels<T>& panels, int64_t p, int64_t k_begin, int64_t k_end,
                      int64_t passed, int64_t all, Start<T> start, T* tile) const {
    const int64_t vectors = panels.vectors(p);
    int64_t step = vectors * Vector<T>::width;
    if (k_begin == k_end) {
      for (int64_t m = 0; m < count; ++m)
        memmove(tile + m * step, start.at + m * start.step, sizeof(T) * static_cast<size_t>(step));
      return;
    }
    const T* panel = packed ? packed + panels.offset(groups<P>(depth), p) : last_panel;
    if (by_rows && p + 1 < panels.count) {
      panel = by_rows + panels.column(p, 0);
      step = row_stride;
    }
    panel += k_begin / kGroup<P> * step;
    const int64_t lanes = groups<P>(k_end - k_begin);
    const int64_t lane_bytes = packed ? step * static_cast<int64_t>(sizeof(T)) : 0;
    const char* after = reinterpret_cast<const char*>(panel) + lanes * lane_bytes;
    for_each_tile(0, count, vectors, [&](int64_t m, int64_t height) {
      const P* rows[kMaxRows] = {};
      for (int64_t i = 0; i < height; ++i) rows[i] = a[first + m + i] + a_offset + k_begin;
      const Start<T> from{start.at + m * start.step, start.step};
      T* to = tile + m * vectors * Vector<T>::width;
      if constexpr (kGroup<P> == 1)
        if (by_columns) return multiply_dots(rows, height, panels, p, from, to);
      // Where there is one tile it has no time for more.
      const int64_t ahead_bytes = height < all ? lane_bytes * height / all : 0;
      const Ahead ahead{after + (passed + m) * lanes * lane_bytes / all, ahead_bytes};
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
Matrix<P> matrix_by_columns(const Runtime& runtime, const Panels<T>& panels, const T* source,
                            int64_t depth, bool once) {
  Matrix<P> matrix{depth};
  if (kGroup<P> == 1 && once && depth >= kDotDepth) {
    matrix.by_columns = source;
  } else {
    T* packed = allocate<T>(runtime, panels.packed_size(groups<P>(depth)));
    pack_columns<P>(runtime, panels, source, depth, depth, packed);
    matrix.packed = packed;
  }
  return matrix;
}

// B given by its rows, panels.columns apart.
template <class P, class T>
Matrix<P> matrix_by_rows(const Runtime& runtime, const Panels<T>& panels, const T* source,
                         int64_t depth, bool once) {
  Matrix<P> matrix{depth};
  const Rows<const T> rows = matrix_rows(source, panels.columns);
  if (kGroup<P> == 1 && once && panels.count > 1) {
    const int64_t p = panels.count - 1;
    T* packed = allocate<T>(runtime, panels.packed_size(depth) - panels.offset(depth, p));
    pack_panels<P>(panels, p, panels.count, rows, 0, 1, depth, packed - panels.offset(depth, p));
    matrix.by_rows = source;
    matrix.row_stride = panels.columns;
    matrix.last_panel = packed;
  } else {
    T* packed = allocate<T>(runtime, panels.packed_size(groups<P>(depth)));
    pack_rows<P>(runtime, panels, rows, 0, 1, depth, packed);
    matrix.packed = packed;
  }
  return matrix;
}

// out [row_begin..row_end, panel_begin..panel_end] = bias + a * B, on the calling thread.
// bias is packed like one row of B; null for zero.
template <class P, class T>
void multiply(const Rows<const P>& a, const Rows<T>& out, int64_t row_begin, int64_t row_end,
              const Panels<T>& panels, int64_t panel_begin, int64_t panel_end,
              const Matrix<P>& matrix, const T* bias) {
  constexpr int width = Vector<T>::width;
  const int64_t block = matrix.block_depth();
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    const int64_t vectors = panels.vectors(p);
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
        matrix.multiply_block(a, 0, first, count, panels, p, k, min_of(matrix.depth, k + block),
                              first - row_begin, row_end - row_begin, start, tile.at);
        for_each_vector(first, count, [&](int64_t at, int64_t v, T* to) {
          store_first(to, load(tile.at + at), panels.valid(p, v));
        });
      });
    }
  }
}

// The same over all rows and panels, on all threads: rows are shared out where there are enough.
template <class P, class T>
void multiply_parallel(const Runtime& runtime, const Rows<const P>& a, const Rows<T>& out,
                       int64_t rows, const Panels<T>& panels, const Matrix<P>& matrix,
                       const T* bias) {
  const int64_t work = product_work(rows, matrix.depth, panels.columns * panels.gates);
  if (rows >= runtime.num_threads * 4 * kMaxRows) {
    parallel(runtime, rows, work, [&](int64_t begin, int64_t end) {
      multiply(a, out, begin, end, panels, 0, panels.count, matrix, bias);
    });
  } else {
    parallel(runtime, panels.count, work, [&](int64_t begin, int64_t end) {
      multiply(a, out, 0, rows, panels, begin, end, matrix, bias);
    });
  }
}

// One right-hand side of weight_gradient: out [columns of a, columns] = a^T * b.
template <class T>
struct GradientPart {
  Rows<const T> b;
  int64_t columns;
  T* out;  // contiguous
};

// How weight_gradient cuts its work: rows packed at once, and the columns of a that a thread packs.
template <class P>
constexpr int64_t kRowBlock = 256 * kGroup<P>;
constexpr int64_t kColumnBlock = 48;

// packed_a [groups of depth][kColumnBlock] = columns [column, column + columns) of rows row,
// row - 1, ... of a.
template <class P>
void pack_transposed(const Rows<const P>& a, int64_t row, int64_t depth, int64_t column,
                     int64_t columns, Sum<P>* packed_a) {
  typedef Sum<P> T;
  constexpr int width = Vector<T>::width;
  constexpr int group = kGroup<P>;
  for (int64_t k = 0; k < groups<P>(depth); ++k) {
    T* to = packed_a + k * kColumnBlock;
    if constexpr (group == 1) {
      const T* from = a[row - k] + column;
      for (int64_t m = 0; m < kColumnBlock; m += width)
        store(to + m, load_first(from + m, max_of(0, min_of(width, columns - m))));
    } else {
      for (int64_t m = 0; m < kColumnBlock; m += width) {
        const int64_t valid = max_of(0, min_of(width, columns - m));
        Vec<T> x[group];
        for (int i = 0; i < group; ++i)
          x[i] = k * group + i < depth ? load_operand(a[row - k * group - i] + column + m, valid)
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

// out (rows of panels.columns) = or += packed_a^T, of which `columns` count, times packed b.
template <class P, class T>
void multiply_transposed(const T* packed_a, int64_t columns, int64_t depth, const Panels<T>& panels,
                         const T* packed_b, bool add, T* out) {
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
          __builtin_prefetch(out + (first + m) * panels.columns + panels.column(p, v), 1);
      }
      tile_kernel<P>(vectors, count)(
          depth, sum_block<P>(depth), columns_of_a, kColumnBlock * kGroup<P>, panel,
          vectors * width, {after + first * panel_bytes / columns, lane_bytes * count / columns},
          zero_start<T>(), tile.at);
      for (int64_t m = 0; m < count; ++m)
        for (int64_t v = 0; v < vectors; ++v) {
          T* to = out + (first + m) * panels.columns + panels.column(p, v);
          const int64_t valid = panels.valid(p, v);
          Vec<T> sum = load(tile.at + (m * vectors + v) * width);
          if (add) sum = load_first<T>(to, valid) + sum;
          store_first(to, sum, valid);
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
  for (int i = 0; i < part_count; ++i) {
    columns_of_b += parts[i].columns;
    most += Panels<T>(parts[i].columns, 1).packed_size(groups<P>(kRowBlock<P>));
    if (rows == 0) set_or_zero<T>(nullptr, parts[i].out, columns * parts[i].columns);
  }
  if (rows == 0 && bias_out) set_or_zero<T>(nullptr, bias_out, columns);
  T* packed = allocate<T>(runtime, most);
  const int64_t blocks =
      ceil_div(ceil_div(columns, kColumnBlock), runtime.num_threads) * runtime.num_threads;
  const int64_t block = ceil_div(columns, blocks);

  for (int64_t row = 0; row < rows; row += kRowBlock<P>) {
    const int64_t depth = min_of(kRowBlock<P>, rows - row), last = rows - 1 - row;
    T* to = packed;
    for (int i = 0; i < part_count; ++i) {
      const Panels<T> panels(parts[i].columns, 1);
      pack_rows<P>(runtime, panels, parts[i].b, last, -1, depth, to);
      to += panels.packed_size(groups<P>(depth));
    }
    const auto body = [&](int64_t begin, int64_t end) {
      alignas(64) T packed_a[groups<P>(kRowBlock<P>) * kColumnBlock];
      for (int64_t m = begin * block; m < min_of(columns, end * block); m += block) {
        const int64_t count = min_of(block, columns - m);
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
          multiply_transposed<P>(packed_a, count, depth, panels, from, row > 0,
                                 parts[i].out + m * panels.columns);
          from += panels.packed_size(groups<P>(depth));
        }
      }
    };
    parallel(runtime, blocks, depth * columns * (columns_of_b + 1), body);
  }
}

}  // namespace
}  // namespace rnnfast

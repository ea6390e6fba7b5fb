// The inner loops of products: a few rows times a panel or a few columns, in one fixed order over
// k.
//
// A tile of a few rows times one panel stays in registers: for each k, every row's element is
// broadcast and multiplied with the panel's vectors. Rows need no packing: only their start and a
// step over k. Of operands in bfloat16 (operand.h) a lane holds two k, and "element" reads "pair".
//
// Sums run over k in blocks, each from zero, then added to the tile: the error of a long sum stays
// small, as in libraries that sum in many lanes, and an element's bits depend on its row and its
// column alone, never on the tile, the batch or the thread it was computed in.
#pragma once

#include "cpu/panels.h"

namespace rnnfast {
namespace {

// Depths of a block: long sums take larger ones, of which fewer are added (2 % of the time).
constexpr int64_t kSumBlock = 32, kLongSumBlock = 64, kLongSum = 128;
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

}  // namespace
}  // namespace rnnfast

// Linear cross entropy on the CPU: the one body of ../linear_cross_entropy.h, compiled for each
// ISA.
//
// Logits are computed transposed, [classes, rows]: weight, the large operand, is then read where it
// stands, as the rows of the product, and the few rows of the input are packed as its panels. So
// softmax runs over rows of the tile, one row of the input to a lane, with no sum across lanes.
//
//   1. A block of classes times a panel of rows stays in the first-level cache. There its maximum
//   m,
//      e = exp(logit - m) and the sum of e are taken; e, m and the sum are kept.
//   2. From the blocks' m and sums come those of all classes, and with them the factor that makes
//      each block's e a softmax: one exp for each logit, and none of any sum can overflow.
//   3. A block of e becomes d, in the cache again, and is at once multiplied with the input, which
//      gives that block's rows of grad_weight.
//   4. As soon as every thread has some blocks of d, these times their rows of weight are added to
//      grad_input, in panels of features: d is read where it stands, down its columns.
#pragma once

#include "cpu/activations.h"
#include "cpu/gemm.h"
#include "linear_cross_entropy.h"

namespace rnnfast {
namespace {

// Classes of a block, and bytes of d that may be there at a time.
constexpr int64_t kClassBlock = 64, kChunkBytes = int64_t{64} << 20;
// Classes that grad_input is summed over at a time.
constexpr int64_t kClassDepth = 256;

template <class T>
RNNFAST_INLINE Vec<T> exp_nonpositive(Vec<T> a) {
  const Vec<T> lowest = broadcast(ExpConstants<T>::lowest);
  return exp_of(a < lowest ? lowest : a);
}

inline double log_of(double x) { return __builtin_log(x); }

// A chunk of rows at work.
template <class P>
struct CrossEntropyChunk {
  typedef Sum<P> T;
  static constexpr int width = Vector<T>::width;
  const LinearCrossEntropy& a;
  const int64_t first, rows;  // of the call's
  const int64_t stride;       // rows, rounded up to an odd number of vectors
  const int64_t blocks;       // of classes
  const T* weight;
  const T* bias;
  const int64_t* target;
  Rows<const T> input;

  T* d;           // [classes, stride]: e, then d; null where no gradient is wanted
  T* factor;      // [blocks, stride]: maxima, then what makes e a softmax
  T* sum;         // [blocks, stride]: of e
  T* chosen;      // [stride]: the target's logit
  T* input_sums;  // [rows, features] in panels
  // Where operands are held otherwise than sums, their copies; else null.
  P* rounded;  // [threads, kClassBlock, features]: a block of weight for each thread
  T* pairs;    // [groups of a share of the classes, stride]: d, grouped over classes

  int64_t class_begin(int64_t block) const { return block * kClassBlock; }
  int64_t class_end(int64_t block) const { return min_of(a.classes, (block + 1) * kClassBlock); }

  // Calls body(c, row) for each row whose target c is a class of the block.
  template <class Body>
  void for_each_target(int64_t block, int64_t begin, int64_t end, const Body& body) const {
    const int64_t low = class_begin(block), high = class_end(block);
    for (int64_t n = begin; n < end; ++n)
      if (target[n] != a.ignore_index && target[n] >= low && target[n] < high) body(target[n], n);
  }

  // A block's rows of weight as operand, for one of the threads.
  const P* operand_rows(int64_t block, int64_t thread) const {
    const T* from = weight + class_begin(block) * a.features;
    if constexpr (kGroup<P> == 1) {
      return from;
    } else {
      P* to = rounded + thread * kClassBlock * a.features;
      read_row(Storage::own, from, to, (class_end(block) - class_begin(block)) * a.features);
      return to;
    }
  }

  // Step 1 for one block of classes, whose operand rows are given, and one panel of rows.
  void exponentials(const Panels<T>& panels, int64_t p, const Matrix<P>& input_columns,
                    int64_t block, const P* operand_rows) const {
    const int64_t low = class_begin(block), classes = class_end(block) - low;
    const int64_t vectors = panels.vectors(p), step = vectors * width;
    const int64_t column = panels.column(p, 0);
    alignas(64) T logits[kClassBlock * kMaxVectors * width];
    input_columns.multiply(matrix_rows(operand_rows, a.features), 0, 0, classes, {panels, p},
                           zero_start<T>(), logits);
    if (bias)
      for (int64_t c = 0; c < classes; ++c)
        for (int64_t v = 0; v < vectors; ++v) {
          T* at = logits + c * step + v * width;
          store(at, load(at) + bias[low + c]);
        }
    for_each_target(block, column, min_of(rows, column + step), [&](int64_t c, int64_t n) {
      chosen[n] = logits[(c - low) * step + n - column];
    });
    for (int64_t v = 0; v < vectors; ++v) {
      // From the lowest finite number, so that logits of -infinity give exp(-infinity) = 0.
      Vec<T> most = broadcast(lowest_finite());
      for (int64_t c = 0; c < classes; ++c) {
        const Vec<T> x = load(logits + c * step + v * width);
        most = x > most ? x : most;
      }
      Vec<T> total{};
      for (int64_t c = 0; c < classes; ++c) {
        const Vec<T> e = exp_nonpositive<T>(load(logits + c * step + v * width) - most);
        total = total + e;
        if (d) store(d + (low + c) * stride + column + v * width, e);
      }
      store(factor + block * stride + column + v * width, most);
      store(sum + block * stride + column + v * width, total);
    }
  }

  // Step 2: returns the loss of the rows, summed, before it is scaled.
  double normalize(T scale) const {
    double loss = 0;
    for (int64_t n = 0; n < rows; n += width) {
      Vec<T> most = load(factor + n), total{};
      for (int64_t b = 1; b < blocks; ++b) {
        const Vec<T> m = load(factor + b * stride + n);
        most = m > most ? m : most;
      }
      for (int64_t b = 0; b < blocks; ++b) {
        const Vec<T> part = exp_nonpositive<T>(load(factor + b * stride + n) - most);
        store(factor + b * stride + n, part);
        total = fma(part, load(sum + b * stride + n), total);
      }
      T maxima[width], totals[width], scales[width] = {};
      store(maxima, most);
      store(totals, total);
      for (int64_t i = 0; i < min_of(width, rows - n); ++i)
        if (target[n + i] != a.ignore_index) {
          loss += log_of(totals[i]) - (static_cast<double>(chosen[n + i]) - maxima[i]);
          scales[i] = scale;
        }
      const Vec<T> all = load(scales) / total;
      for (int64_t b = 0; b < blocks; ++b)
        store(factor + b * stride + n, load(factor + b * stride + n) * all);
    }
    return loss;
  }

  // Step 3, but for the product. `share`: the first block of those that threads now share.
  void differentiate(int64_t block, int64_t share, T scale) const {
    T* grad_bias = static_cast<T*>(a.grad_bias);
    for (int64_t c = class_begin(block); c < class_end(block); ++c)
      for (int64_t n = 0; n < rows; n += width) {
        T* at = d + c * stride + n;
        store(at, load(at) * load(factor + block * stride + n));
      }
    for_each_target(block, 0, rows, [&](int64_t c, int64_t n) { d[c * stride + n] -= scale; });
    for (int64_t c = class_begin(block); grad_bias && c < class_end(block); ++c) {
      Vec<T> lanes{};
      for (int64_t n = 0; n < rows; n += width)
        lanes = lanes + load_first(d + c * stride + n, rows - n);
      T parts[width], total = first ? grad_bias[c] : 0;
      store(parts, lanes);
      for (int i = 0; i < width; ++i) total += parts[i];
      grad_bias[c] = total;
    }
    if constexpr (kGroup<P> > 1) {
      for (int64_t c = class_begin(block); pairs && c < class_end(block); c += kGroup<P>) {
        T* to = pairs + (c - class_begin(share)) / kGroup<P> * stride;
        for (int64_t n = 0; n < rows; n += width) {
          Vec<T> x[kGroup<P>] = {};
          for (int i = 0; i < min_of(kGroup<P>, class_end(block) - c); ++i)
            x[i] = load(d + (c + i) * stride + n);
          store(to + n, join<P>(x));
        }
      }
      // In place: what is rounded stands before what is not yet.
      for (int64_t c = class_begin(block); c < class_end(block); ++c)
        read_row(Storage::own, d + c * stride, reinterpret_cast<P*>(d + c * stride), rows);
    }
  }

  // The block's rows of grad_weight = or += d times the input.
  void weight_rows(const Panels<T>& panels, const Matrix<P>& input_rows, int64_t block) const {
    T* grad_weight = static_cast<T*>(a.grad_weight);
    const Rows<const P> d_rows = matrix_rows<const P>(reinterpret_cast<const P*>(d),
                                                      stride * int64_t{sizeof(T) / sizeof(P)});
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t vectors = panels.vectors(p);
      for_each_tile(class_begin(block), class_end(block), vectors, [&](int64_t c, int64_t count) {
        const auto for_each_vector = [&](const auto& body) {
          for (int64_t m = 0; m < count; ++m)
            for (int64_t v = 0; v < vectors; ++v)
              body((m * vectors + v) * width,
                   grad_weight + (c + m) * a.features + panels.column(p, v), panels.valid(p, v));
        };
        Tile<T> tile;
        Start<T> start = zero_start<T>();
        if (first) {
          start = {tile.at, vectors * width};
          for_each_vector([&](int64_t at, const T* from, int64_t valid) {
            store(tile.at + at, load_first(from, valid));
          });
        }
        input_rows.multiply(d_rows, 0, c, count, {panels, p}, start, tile.at);
        for_each_vector(
            [&](int64_t at, T* to, int64_t valid) { store_first(to, load(tile.at + at), valid); });
      });
    }
  }

  // Step 4 for one panel of features: sums [rows] of the panel (from zero where low is 0) += d^T
  // weight, over classes [low, high).
  void add_input_panel(const Panels<T>& panels, int64_t p, int64_t low, int64_t high) const {
    const int64_t vectors = panels.vectors(p), step = vectors * width;
    alignas(64) T panel[groups<P>(kClassDepth) * kMaxVectors * width];
    const T* grouped = kGroup<P> == 1 ? d + low * stride : pairs;
    for (; low < high; low += kClassDepth, grouped += groups<P>(kClassDepth) * stride) {
      const int64_t depth = min_of(kClassDepth, high - low);
      pack_panels<P>(panels, p, p + 1, RowsInTurn(matrix_rows(weight, a.features), low, 1, depth),
                     0, groups<P>(depth), panel - panels.offset(groups<P>(depth), p));
      for_each_tile(0, rows, vectors, [&](int64_t n, int64_t count) {
        const P* columns[kMaxRows];
        for (int64_t m = 0; m < count; ++m)
          columns[m] = reinterpret_cast<const P*>(grouped + n + m);
        T* tile = input_sums + panels.offset(rows, p) + n * step;
        tile_kernel<P>(vectors, count)(depth, sum_block<P>(a.classes), columns, stride * kGroup<P>,
                                       panel, step, nothing_ahead(panel),
                                       low ? Start<T>{tile, step} : zero_start<T>(), tile);
      });
    }
  }

  // The sums of step 4 as grad_input.
  void unpack_input_panel(const Panels<T>& panels, int64_t p) const {
    T* grad_input = static_cast<T*>(a.grad_input) + first * a.features;
    const int64_t vectors = panels.vectors(p);
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t v = 0; v < vectors; ++v)
        store_first(grad_input + n * a.features + panels.column(p, v),
                    load(input_sums + panels.offset(rows, p) + (n * vectors + v) * width),
                    panels.valid(p, v));
  }

  static constexpr T lowest_finite() {
    if constexpr (sizeof(T) == 4) return -__FLT_MAX__;
    return -__DBL_MAX__;
  }
};

// Rows worked on at once: as many as the memory allows, in chunks of about the same size.
template <class T>
int64_t chunk_rows(int64_t rows, int64_t classes) {
  constexpr int width = Vector<T>::width;
  const int64_t most = max_of(1, kChunkBytes / (classes * width * sizeof(T))) * width;
  return ceil_div(rows, max_of(1, ceil_div(rows, most)));
}

template <class P>
void linear_cross_entropy(const Runtime& runtime, const LinearCrossEntropy& a) {
  typedef Sum<P> T;
  constexpr int width = Vector<T>::width;
  const T* weight = static_cast<const T*>(a.weight);
  const bool differentiates = a.grad_input || a.grad_weight || a.grad_bias;
  int64_t counted = 0;
  for (int64_t n = 0; n < a.rows; ++n) counted += a.target[n] != a.ignore_index;
  const T scale = a.mean ? T(1) / static_cast<T>(counted) : T(1);
  if (a.rows == 0) {
    if (a.grad_weight)
      set_or_zero<T>(nullptr, static_cast<T*>(a.grad_weight), a.classes * a.features);
    if (a.grad_bias) set_or_zero<T>(nullptr, static_cast<T*>(a.grad_bias), a.classes);
  }

  const int64_t chunk = chunk_rows<T>(a.rows, a.classes);
  // Odd, so that no power of two sends a column of d into a few sets of the cache.
  const int64_t stride = (ceil_div(chunk, width) | 1) * width;
  const int64_t blocks = ceil_div(a.classes, kClassBlock), threads = runtime.num_threads;
  T* d = differentiates ? allocate<T>(runtime, a.classes * stride) : nullptr;
  T* factor = allocate<T>(runtime, blocks * stride);
  T* sum = allocate<T>(runtime, blocks * stride);
  T* chosen = allocate<T>(runtime, stride);
  const Panels<T> features(a.features, 1, threads);
  T* packed_columns = allocate<T>(runtime, Panels<T>(chunk, 1).packed_size(groups<P>(a.features)));
  T* input_sums = a.grad_input ? allocate<T>(runtime, features.packed_size(chunk)) : nullptr;
  T* packed_rows =
      a.grad_weight ? allocate<T>(runtime, features.packed_size(groups<P>(chunk))) : nullptr;
  // Classes between two meetings of the threads.
  const int64_t share = a.grad_input ? kClassDepth * threads : a.classes;
  P* rounded = nullptr;
  T* pairs = nullptr;
  if constexpr (kGroup<P> > 1) {
    rounded = allocate<P>(runtime, threads * kClassBlock * a.features);
    if (a.grad_input) pairs = allocate<T>(runtime, groups<P>(share) * stride);
  }

  double loss = 0;
  for (int64_t first = 0; first < a.rows; first += chunk) {
    const int64_t rows = min_of(chunk, a.rows - first);
    const T* input = static_cast<const T*>(a.input) + first * a.input_row;
    const CrossEntropyChunk<P> c{a,
                                 first,
                                 rows,
                                 stride,
                                 blocks,
                                 weight,
                                 static_cast<const T*>(a.bias),
                                 a.target + first,
                                 matrix_rows(input, a.input_row),
                                 d,
                                 factor,
                                 sum,
                                 chosen,
                                 input_sums,
                                 rounded,
                                 pairs};
    const Panels<T> panels(rows, 1);
    pack_columns<P>(runtime, panels, input, a.input_row, a.features, packed_columns);
    Matrix<P> input_columns{a.features};
    input_columns.packed = packed_columns;
    const int64_t work = product_work(rows, a.features, a.classes);
    parallel(runtime, threads, work, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread)
        for (int64_t b = thread * blocks / threads; b < (thread + 1) * blocks / threads; ++b) {
          const P* operand_rows = c.operand_rows(b, thread);
          for (int64_t p = 0; p < panels.count; ++p)
            c.exponentials(panels, p, input_columns, b, operand_rows);
        }
    });
    loss += c.normalize(scale);
    if (!differentiates) continue;

    Matrix<P> input_rows{rows};
    if (a.grad_weight) {
      pack_rows<P>(runtime, features, RowsInTurn(c.input, 0, 1, rows), packed_rows);
      input_rows.packed = packed_rows;
    }
    for (int64_t low = 0; low < a.classes; low += share) {
      const int64_t high = min_of(a.classes, low + share), block = low / kClassBlock;
      const int64_t work = product_work(rows, a.features, high - low);
      parallel(runtime, ceil_div(high - low, kClassBlock), work, [&](int64_t begin, int64_t end) {
        for (int64_t b = block + begin; b < block + end; ++b) {
          c.differentiate(b, block, scale);
          if (a.grad_weight) c.weight_rows(features, input_rows, b);
        }
      });
      if (!a.grad_input) continue;
      parallel(runtime, features.count, work, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          c.add_input_panel(features, p, low, high);
          if (high == a.classes) c.unpack_input_panel(features, p);
        }
      });
    }
  }
  *static_cast<T*>(a.loss) = static_cast<T>(a.mean ? loss / static_cast<double>(counted) : loss);
}

}  // namespace
}  // namespace rnnfast

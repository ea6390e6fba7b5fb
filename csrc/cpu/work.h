// How work is shared among threads, and scratch memory: Runtime for kernel bodies.
#pragma once

#include "cpu/vec.h"
#include "runtime.h"

namespace rnnfast {
namespace {

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

// A copy of plain data in the runtime's memory.
template <class Data>
Data* kept(const Runtime& runtime, const Data& data) {
  Data* copy = allocate<Data>(runtime, 1);
  memcpy(copy, &data, sizeof data);
  return copy;
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

}  // namespace
}  // namespace rnnfast

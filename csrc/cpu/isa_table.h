// Makes the table of one ISA from the bodies. Included once by each kernels_<isa>.cpp, after it has
// been given its flags by CMakeLists.txt.
#pragma once

#include "cpu/gru_kernels.h"
#include "cpu/linear_cross_entropy_kernels.h"
#include "cpu/lstm_kernels.h"
#include "cpu/rnn_kernels.h"
#include "cpu/stream_kernels.h"
#include "cpu_kernels.h"

namespace rnnfast {
namespace {

uint64_t kernel_calls = 0;

template <class Args, void (*kernel)(const Runtime&, const Args&)>
void counted(const Runtime* runtime, const Args* args) {
  __atomic_fetch_add(&kernel_calls, 1, __ATOMIC_RELAXED);
  kernel(*runtime, *args);
}

template <class Args, void* (*pack)(const Runtime&, const Args&)>
void* packs(const Runtime* runtime, const Args* args) {
  return pack(*runtime, *args);
}

template <class T, Vec<T> (*activation)(Vec<T>)>
void map(const void* x, void* y, int64_t count) {
  constexpr int width = Vector<T>::width;
  const T* from = static_cast<const T*>(x);
  T* to = static_cast<T*>(y);
  for (int64_t i = 0; i < count; i += width)
    store_first(to + i, activation(load_first(from + i, count - i)), count - i);
}

// P: how operands of products are held.
template <class P>
constexpr CpuKernels kernels_of() {
  typedef Sum<P> T;
  return {counted<LstmForward, lstm_forward<P>>,
          counted<LstmBackward, lstm_backward<P>>,
          counted<GruForward, gru_forward<P>>,
          counted<GruBackward, gru_backward<P>>,
          counted<RnnForward, rnn_forward<P>>,
          counted<RnnBackward, rnn_backward<P>>,
          packs<LstmForward, lstm_pack<P>>,
          packs<GruForward, gru_pack<P>>,
          packs<RnnForward, rnn_pack<P>>,
          stream_layer<T>,
          counted<StreamStep, stream_step<T>>,
          counted<LinearCrossEntropy, linear_cross_entropy<P>>,
          map<T, sigmoid_of<T>>,
          map<T, tanh_of<T>>};
}

uint64_t calls() { return __atomic_load_n(&kernel_calls, __ATOMIC_RELAXED); }

}  // namespace
}  // namespace rnnfast

#define RNNFAST_DEFINE_ISA(isa)                                                    \
  const CpuIsa* rnnfast::cpu_isa_##isa() {                                         \
    static constexpr CpuIsa table = {#isa,                                         \
                                     kernels_of<float>(),                          \
                                     kernels_of<double>(),                         \
                                     counted<QuantizedForward, quantized_forward>, \
                                     calls,                                        \
                                     nullptr};                                     \
    return &table;                                                                 \
  }

// pointwise.h with the scalars of pointwise_scalar.h, as plain C++: one plain C function per
// function of theirs, over arrays of n numbers, for ctypes.
#include "cuda/pointwise_scalar.h"

#include <stdint.h>

namespace {

// in: i f g o before activation, c_prev. out: i f g o activated, c, h.
template <class T>
void lstm(int64_t n, const T* const* in, T* const* out) {
  for (int64_t j = 0; j < n; ++j) {
    rnnfast::LstmGates<T> gates = {in[0][j], in[1][j], in[2][j], in[3][j]};
    rnnfast::lstm_pointwise(gates, in[4][j], out[4][j], out[5][j]);
    out[0][j] = gates.i;
    out[1][j] = gates.f;
    out[2][j] = gates.g;
    out[3][j] = gates.o;
  }
}

// in: i f g o activated, c, c_prev, grad_h, grad_c. out: their gradients before activation, that of
// c_prev.
template <class T>
void lstm_backward(int64_t n, const T* const* in, T* const* out) {
  for (int64_t j = 0; j < n; ++j) {
    const rnnfast::LstmGates<T> gates = {in[0][j], in[1][j], in[2][j], in[3][j]};
    T grad_c = in[7][j];
    const rnnfast::LstmGates<T> grad =
        rnnfast::lstm_pointwise_backward(gates, in[4][j], in[5][j], in[6][j], grad_c);
    out[0][j] = grad.i;
    out[1][j] = grad.f;
    out[2][j] = grad.g;
    out[3][j] = grad.o;
    out[4][j] = grad_c;
  }
}

// in: z n before activation, h_prev. out: z n activated, h.
template <class T>
void gru(int64_t n, const T* const* in, T* const* out) {
  for (int64_t j = 0; j < n; ++j) {
    out[0][j] = rnnfast::sigmoid(in[0][j]);
    out[1][j] = rnnfast::tanh(in[1][j]);
    out[2][j] = rnnfast::gru_blend(out[0][j], out[1][j], in[2][j]);
  }
}

// in: z n activated, h_prev, grad_h. out: gradients of z n before activation, that of h_prev.
template <class T>
void gru_backward(int64_t n, const T* const* in, T* const* out) {
  for (int64_t j = 0; j < n; ++j) {
    rnnfast::gru_blend_backward(in[0][j], in[1][j], in[2][j], in[3][j], out[0][j], out[1][j],
                                out[2][j]);
  }
}

// in: x, gradient of an activation. out: sigmoid, tanh and relu of x, their gradients.
template <class T>
void activations(int64_t n, const T* const* in, T* const* out) {
  for (int64_t j = 0; j < n; ++j) {
    const T x = in[0][j], grad = in[1][j];
    out[0][j] = rnnfast::sigmoid(x);
    out[1][j] = rnnfast::tanh(x);
    out[2][j] = rnnfast::relu(x);
    out[3][j] = rnnfast::sigmoid_backward(out[0][j], grad);
    out[4][j] = rnnfast::tanh_backward(out[1][j], grad);
    out[5][j] = rnnfast::relu_backward(out[2][j], grad);
  }
}

}  // namespace

#define EXPORT(function)                                                                      \
  extern "C" void function##_float(int64_t n, const float* const* in, float* const* out) {    \
    function(n, in, out);                                                                     \
  }                                                                                           \
  extern "C" void function##_double(int64_t n, const double* const* in, double* const* out) { \
    function(n, in, out);                                                                     \
  }

EXPORT(lstm)
EXPORT(lstm_backward)
EXPORT(gru)
EXPORT(gru_backward)
EXPORT(activations)

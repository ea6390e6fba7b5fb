// The gate maths of every cell, written once for a SIMD vector (CPU) and for a scalar (CUDA).
//
// V is a type with + - * and unary minus; `sigmoid(V)` and `tanh(V)` are found beside it. Names
// follow lstm.h, gru.h and rnn.h; in backward, `grad_x` is the gradient of the loss with respect to
// x, and `grad_pre_x` that with respect to gate x before its activation.
#pragma once

#ifdef __CUDACC__
#define RNNFAST_POINTWISE __host__ __device__ __forceinline__
#else
#define RNNFAST_POINTWISE inline __attribute__((always_inline))
#endif

namespace rnnfast {
// Unnamed, so that a copy compiled for one ISA is never the one linked for another.
namespace {

template <class V>
struct LstmGates {
  V i, f, g, o;
};

// In: gates before activation and c_{t-1}. Out: gates activated. Returns c_t.
template <class V>
RNNFAST_POINTWISE V lstm_cell(LstmGates<V>& gates, V c_prev) {
  gates.i = sigmoid(gates.i);
  gates.f = sigmoid(gates.f);
  gates.g = tanh(gates.g);
  gates.o = sigmoid(gates.o);
  return gates.f * c_prev + gates.i * gates.g;
}

// h_t, from the activated output gate and c_t.
template <class V>
RNNFAST_POINTWISE V lstm_hidden(V o, V c) {
  return o * tanh(c);
}

// The same, both: gates activated, c_t, h_t.
template <class V>
RNNFAST_POINTWISE void lstm_pointwise(LstmGates<V>& gates, V c_prev, V& c, V& h) {
  c = lstm_cell(gates, c_prev);
  h = lstm_hidden(gates.o, c);
}

// In: activated gates, c_t, c_{t-1}, the gradients of h_t and of c_t (from step t+1).
// Returns the gradients of the gates before activation; grad_c becomes the gradient of c_{t-1}.
template <class V>
RNNFAST_POINTWISE LstmGates<V> lstm_pointwise_backward(const LstmGates<V>& gates, V c, V c_prev,
                                                       V grad_h, V& grad_c) {
  const V tanh_c = tanh(c);
  const V one = V{} + 1;
  grad_c = grad_c + grad_h * gates.o * (one - tanh_c * tanh_c);
  LstmGates<V> grad_pre;
  grad_pre.i = grad_c * gates.g * gates.i * (one - gates.i);
  grad_pre.f = grad_c * c_prev * gates.f * (one - gates.f);
  grad_pre.g = grad_c * gates.i * (one - gates.g * gates.g);
  grad_pre.o = grad_h * tanh_c * gates.o * (one - gates.o);
  grad_c = grad_c * gates.f;
  return grad_pre;
}

// h_t = (1 - z) n + z h_{t-1}, with z and n activated.
template <class V>
RNNFAST_POINTWISE V gru_blend(V z, V n, V h_prev) {
  return n + z * (h_prev - n);
}

// In: activated z and n, h_{t-1}, the gradient of h_t. Out: gradients of z and n before activation,
// and `carry`, the part of the gradient of h_{t-1} that flows through the blend alone.
template <class V>
RNNFAST_POINTWISE void gru_blend_backward(V z, V n, V h_prev, V grad_h, V& grad_pre_z,
                                          V& grad_pre_n, V& carry) {
  const V one = V{} + 1;
  grad_pre_z = grad_h * (h_prev - n) * z * (one - z);
  grad_pre_n = grad_h * (one - z) * (one - n * n);
  carry = grad_h * z;
}

// Gradient of r before activation from that of r itself.
template <class V>
RNNFAST_POINTWISE V sigmoid_backward(V activated, V grad) {
  const V one = V{} + 1;
  return grad * activated * (one - activated);
}

}  // namespace
}  // namespace rnnfast

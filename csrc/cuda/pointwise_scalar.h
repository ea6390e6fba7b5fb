// pointwise.h for scalars: the activations of float and double, on the device and on the host.
//
// The names must be declared before pointwise.h, whose templates look them up where they are
// defined; hence the include at the end, and one header for a kernel to include.
//
//   sigmoid(x) = (x < 0 ? e : 1) / (1 + e)   with e = exp(-|x|)
//
// so nothing overflows and the lower tail goes to 0 through the subnormals. Largest error over all
// finite arguments: 3.5 ULP where exp is within 1 ULP and division is rounded correctly, so not
// with nvcc's --use_fast_math. tanh is the math library's own. NaN passes through all of them.
#pragma once

#include <math.h>

#ifdef __CUDACC__
#define RNNFAST_SCALAR __host__ __device__ __forceinline__
#else
#define RNNFAST_SCALAR inline __attribute__((always_inline))
#endif

namespace rnnfast {
namespace {

RNNFAST_SCALAR float exp_scalar(float x) { return ::expf(x); }
RNNFAST_SCALAR double exp_scalar(double x) { return ::exp(x); }

template <class T>
RNNFAST_SCALAR T sigmoid_scalar(T x) {
  const T e = exp_scalar(x < 0 ? x : -x);
  return (x < 0 ? e : T(1)) / (T(1) + e);
}

RNNFAST_SCALAR float sigmoid(float x) { return sigmoid_scalar(x); }
RNNFAST_SCALAR double sigmoid(double x) { return sigmoid_scalar(x); }

RNNFAST_SCALAR float tanh(float x) { return ::tanhf(x); }
RNNFAST_SCALAR double tanh(double x) { return ::tanh(x); }

// Written so that NaN is not below zero: max(x, 0) would lose it.
template <class T>
RNNFAST_SCALAR T relu(T x) {
  return x < 0 ? T(0) : x;
}

// Gradients before activation from those of h = activation(pre). As in torch, relu lets the
// gradient through where h is NaN.
template <class T>
RNNFAST_SCALAR T relu_backward(T h, T grad) {
  return h <= 0 ? T(0) : grad;
}

template <class T>
RNNFAST_SCALAR T tanh_backward(T h, T grad) {
  return grad * (T(1) - h * h);
}

}  // namespace
}  // namespace rnnfast

#include "pointwise.h"

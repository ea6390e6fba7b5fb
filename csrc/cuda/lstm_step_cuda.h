// Contract of the CUDA LSTM step: one time step of one layer, forward, and its backward pointwise
// part.
//
// Equations, gate order and the letters N (batch) and H (hidden_size): ../lstm.h. The products over
// the whole sequence, gates_x = input weight_ih^T + bias_ih + bias_hh before the time loop and the
// weight gradients after it, are the caller's; so is, between two backward steps,
// grad_h_{t-1} = grad_gates weight_hh.
//
// Pointers are device memory of type T; features are contiguous and a matrix's rows are apart by
// the stride beside it, in elements. A matrix without a stride is contiguous. Sizes may have any
// value; 0 launches nothing.
//
// The calls are asynchronous on `stream`, allocate nothing and use no atomics. They return
// cudaErrorInvalidValue for a negative size, cudaErrorInvalidConfiguration for a step of more than
// 2^31 - 1 blocks of 32 rows by 8 units, and else what the launch returns.
//
// Accuracy: the recurrent product is summed over k in tiles of 32, in a fixed order, so the same
// input gives the same bits and a row's bits do not depend on the batch around it; activations as
// in pointwise_scalar.h.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace rnnfast {

// clang-format off: the fields are a table
struct LstmStepCuda {
  int64_t batch, hidden_size;

  // name                      shape        role
  const void* gates_x;       // [N, 4H]     input half of the pre-activations, both biases included
  int64_t gates_x_row;
  const void* h_prev;        // [N, H]      h_{t-1}
  int64_t h_prev_row;
  const void* c_prev;        // [N, H]      c_{t-1}
  int64_t c_prev_row;
  const void* weight_hh;     // [4H, H]

  void* h;                   // [N, H]      h_t; may not alias h_prev
  int64_t h_row;
  void* c;                   // [N, H]      c_t; may be c_prev, same stride
  int64_t c_row;
  void* gates;               // [N, 4H]     i f g o after activation, kept for backward; may be null
  int64_t gates_row;         //             (inference) or gates_x, same stride
};

struct LstmStepBackwardCuda {
  int64_t batch, hidden_size;

  const void* gates;         // [N, 4H]     forward's; only read
  int64_t gates_row;
  const void* c;             // [N, H]      c_t
  int64_t c_row;
  const void* c_prev;        // [N, H]      c_{t-1}
  int64_t c_prev_row;
  const void* grad_output;   // [N, H]      gradient of h_t from the layer above; may be null (zero)
  int64_t grad_output_row;
  const void* grad_h;        // [N, H]      gradient of h_t from step t+1; may be null (zero)

  void* grad_c;              // [N, H]      in: gradient of c_t from step t+1; out: that of c_{t-1}
  void* grad_gates;          // [N, 4H]     gradient of the gates before activation
  int64_t grad_gates_row;
};
// clang-format on

// T is float or double.
template <class T>
cudaError_t lstm_step_cuda(const LstmStepCuda* args, cudaStream_t stream);
template <class T>
cudaError_t lstm_step_backward_cuda(const LstmStepBackwardCuda* args, cudaStream_t stream);

}  // namespace rnnfast

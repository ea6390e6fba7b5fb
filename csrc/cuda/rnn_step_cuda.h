// Contract of the CUDA step of the plain RNN (tanh or relu): one time step of one layer, forward,
// and its backward pointwise part.
//
// Equation and letters: ../rnn.h. Memory, sizes, streams, determinism, returned errors and the
// products that are the caller's: lstm_step_cuda.h, with grad_h_{t-1} = grad_gates weight_hh.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace rnnfast {

// clang-format off: the fields are a table
struct RnnStepCuda {
  int64_t batch, hidden_size;
  int32_t relu;

  // name                      shape        role
  const void* gates_x;       // [N, H]      input half of the pre-activation, both biases included
  int64_t gates_x_row;
  const void* h_prev;        // [N, H]      h_{t-1}
  int64_t h_prev_row;
  const void* weight_hh;     // [H, H]

  void* h;                   // [N, H]      h_t; may not alias h_prev; may be gates_x, same stride
  int64_t h_row;
};

struct RnnStepBackwardCuda {
  int64_t batch, hidden_size;
  int32_t relu;

  const void* h;             // [N, H]      h_t
  int64_t h_row;
  const void* grad_output;   // [N, H]      gradient of h_t from the layer above; may be null (zero)
  int64_t grad_output_row;
  const void* grad_h;        // [N, H]      gradient of h_t from step t+1; may be null (zero)

  void* grad_gates;          // [N, H]      gradient of the pre-activation
  int64_t grad_gates_row;
};
// clang-format on

// T is float or double.
template <class T>
cudaError_t rnn_step_cuda(const RnnStepCuda* args, cudaStream_t stream);
template <class T>
cudaError_t rnn_step_backward_cuda(const RnnStepBackwardCuda* args, cudaStream_t stream);

}  // namespace rnnfast

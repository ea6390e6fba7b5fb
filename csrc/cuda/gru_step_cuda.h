// Contract of the CUDA GRU step: one time step of one layer, forward, and its backward pointwise
// part.
//
// Equations of both forms, gate order and letters: ../gru.h. Memory, sizes, streams, determinism
// and returned errors: lstm_step_cuda.h. The hidden bias is an argument of its own, not a part of
// gates_x, because the form with the reset after the product multiplies its third part by r.
//
// Products that are the caller's: gates_x = input weight_ih^T + bias_ih before the time loop, the
// weight gradients after it, and per backward step, with W_r, W_z, W_n the parts of weight_hh,
//
//   reset_after   gru_step_backward_cuda, then grad_h_{t-1} = grad_h_prev + grad_gates_h weight_hh
//   reset before  gru_step_backward_cuda, then grad_reset_h = grad_n W_n, gru_reset_backward_cuda,
//                 then grad_h_{t-1} = grad_h_prev + [grad_r grad_z] [W_r; W_z]
//
// where grad_r, grad_z, grad_n are the parts of grad_gates_x.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace rnnfast {

// clang-format off: the fields are a table
struct GruStepCuda {
  int64_t batch, hidden_size;
  int32_t reset_after;

  // name                      shape        role
  const void* gates_x;       // [N, 3H]     input half of the pre-activations, bias_ih included
  int64_t gates_x_row;
  const void* h_prev;        // [N, H]      h_{t-1}
  int64_t h_prev_row;
  const void* weight_hh;     // [3H, H]
  const void* bias_hh;       // [3H]        may be null (zero)

  void* h;                   // [N, H]      h_t; may not alias h_prev
  int64_t h_row;
  void* gates;               // [N, 4H]     r z n after activation and the fourth part of ../gru.h,
  int64_t gates_row;         //             kept for backward. May be null with reset_after; without
                             //             it, it is also what the first of two kernels leaves for
                             //             the second. May be gates_x, same stride (4H or more)
};

struct GruStepBackwardCuda {
  int64_t batch, hidden_size;
  int32_t reset_after;

  const void* gates;         // [N, 4H]     forward's; only read
  int64_t gates_row;
  const void* h_prev;        // [N, H]      h_{t-1}
  int64_t h_prev_row;
  const void* grad_output;   // [N, H]      gradient of h_t from the layer above; may be null (zero)
  int64_t grad_output_row;
  const void* grad_h;        // [N, H]      gradient of h_t from step t+1; may be null (zero)

  void* grad_gates_x;        // [N, 3H]     gradient of the gates before activation, with respect to
  int64_t grad_gates_x_row;  //             the input half
  void* grad_gates_h;        // [N, 3H]     the same for the hidden half, where n's part is times r;
  int64_t grad_gates_h_row;  //             reset_after alone: reset before, the halves are the same
  void* grad_h_prev;         // [N, H]      gradient of h_{t-1} but for the caller's product; may be
                             //             grad_h
  const void* grad_reset_h;  // [N, H]      gradient of r * h_{t-1}: gru_reset_backward_cuda alone
};
// clang-format on

// T is float or double. gru_step_cuda returns cudaErrorInvalidValue where it needs gates
// and has none.
template <class T>
cudaError_t gru_step_cuda(const GruStepCuda* args, cudaStream_t stream);

// With reset_after all of backward's pointwise part, else that of z and n.
template <class T>
cudaError_t gru_step_backward_cuda(const GruStepBackwardCuda* args, cudaStream_t stream);

// Without reset_after, the part of r: writes the first part of grad_gates_x, adds to grad_h_prev.
template <class T>
cudaError_t gru_reset_backward_cuda(const GruStepBackwardCuda* args, cudaStream_t stream);

}  // namespace rnnfast

// Contract of the CUDA LSTM over a whole sequence: one layer, one direction or both.
//
// Equations, gate order, the letters T (seq_len), N (batch) and H (hidden_size), and `reverse`:
// ../lstm.h. The products over the whole sequence are the caller's: gates_x = input weight_ih^T +
// bias_ih + bias_hh before, and after backward grad_input = grad_gates weight_ih and the gradients
// of weights and biases. There are no packed rows here (batch_sizes): the caller takes them step by
// step, by lstm_step_cuda.h.
//
// P is the type of the operands h_{t-1} (in backward, the gates' gradients) and weight_hh in the
// recurrent product: float, Tf32 (tf32.h), __half, __nv_bfloat16 or double. All tensors are float,
// or double where P is; h and weights are rounded to P for the product, which is summed in float.
// They go to the nearest value, of two as near to the even one, in TF32 to the larger one; its
// relative error is that of float16, 2^-11. States and gates are never rounded.
//
// `args` points to `directions` structs, 1 or 2: recurrences over the same seq_len, batch and
// hidden_size that do not need each other, such as those of a bidirectional layer. Each has its own
// `reverse`, weights, states and strides, and what one writes may not alias what the other uses.
//
// The plan comes from plan_sequence (sequence_plan.h) for the current device
// (sequence_device_cuda.h), the same sizes, P and directions and, of forward and backward, the
// right one. A persistent plan runs as one cooperative grid for all directions, or as one for each
// after the other: that is the plan's to say, and a launcher's only where the current device holds
// less than the plan's. Where there is none, or not even one direction's grid can be resident on
// the current device, the same is done by launching step kernels: in float where P is Tf32 or a
// half type, and with sums in another order.
//
// Memory is the device's. Features are contiguous; time and row are reached by strides, in
// elements; a tensor without strides is contiguous. The calls are asynchronous on `stream`,
// allocate nothing, can be captured in a CUDA graph and use no atomics but the barrier's counter.
// workspace has plan.workspace_bytes, aligned to 128, its content free; it is the call's until that
// has finished, so that two streams need two.
//
// They return cudaErrorInvalidValue for a negative size, directions of different sizes or a plan
// for others, and else what CUDA's own calls return. T or N may be 0.
//
// Accuracy: sums over k are cut into eight, by k alone, each in ascending order and added in order.
// So the same input gives the same bits, and a row's bits do not depend on the batch around it nor
// on the other direction as long as the way is the same, persistent or not, which does not depend
// on them either. Activations as in pointwise_scalar.h.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "cuda/sequence_plan.h"
#include "cuda/tf32.h"

namespace rnnfast {

// clang-format off: the fields are a table
struct LstmSequenceCuda {
  int64_t seq_len, batch, hidden_size;
  int32_t reverse;

  // name                      shape        role
  const void* gates_x;       // [T, N, 4H]  input half of the pre-activations, both biases included
  int64_t gates_x_time, gates_x_row;
  const void* h_0;           // [N, H]
  const void* c_0;           // [N, H]
  const void* weight_hh;     // [4H, H]

  void* output;              // [T, N, H]   h_t; may not alias what is read
  int64_t output_time, output_row;
  void* h_n;                 // [N, H]      may not alias h_0
  void* c_n;                 // [N, H]      may not alias c_0

  void* gates;               // [T, N, 4H]  i f g o after activation, kept for backward; may be null
  int64_t gates_time, gates_row;  //        (inference) or gates_x, same strides
  void* cells;               // [T, N, H]   c_t, kept for backward; may be null (inference)
  int64_t cells_time, cells_row;
};

struct LstmSequenceBackwardCuda {
  int64_t seq_len, batch, hidden_size;
  int32_t reverse;

  const void* gates;         // [T, N, 4H]  forward's; only read
  int64_t gates_time, gates_row;
  const void* cells;         // [T, N, H]   forward's; only read
  int64_t cells_time, cells_row;
  const void* c_0;           // [N, H]
  const void* weight_hh;     // [4H, H]

  const void* grad_output;   // [T, N, H]   may be null (zero)
  int64_t grad_output_time, grad_output_row;
  const void* grad_h_n;      // [N, H]      may be null (zero)
  const void* grad_c_n;      // [N, H]      may be null (zero)

  void* grad_gates;          // [T, N, 4H]  gradient of the gates before activation
  int64_t grad_gates_time, grad_gates_row;
  void* grad_h_0;            // [N, H]      may not alias what is read
  void* grad_c_0;            // [N, H]      may not alias what is read
};
// clang-format on

template <class P>
cudaError_t lstm_sequence_cuda(const LstmSequenceCuda* args, int32_t directions,
                               const SequencePlan* plan, void* workspace, cudaStream_t stream);
template <class P>
cudaError_t lstm_sequence_backward_cuda(const LstmSequenceBackwardCuda* args, int32_t directions,
                                        const SequencePlan* plan, void* workspace,
                                        cudaStream_t stream);

}  // namespace rnnfast

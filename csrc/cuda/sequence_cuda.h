// Contract of the CUDA launcher for a whole sequence, of every cell: one recurrence (a layer in one
// direction) or several.
//
// Args is that of a cell, forward or backward: {lstm,gru,rnn}_sequence_cuda.h. The products over
// the whole sequence are the caller's: what gates_x is before, and after backward grad_input =
// grad_gates weight_ih and the gradients of weights and biases. There are no packed rows here
// (batch_sizes): the caller takes them step by step, by *_step_cuda.h.
//
// P is the type of the operands h_{t-1} (in backward, the gates' gradients) and weight_hh in the
// recurrent product: float, Tf32 (tf32.h), __half, __nv_bfloat16 or double. All tensors are float,
// or double where P is; h and weights are rounded to P for the product, which is summed in float.
// They go to the nearest value, of two as near to the even one, in TF32 to the larger one; its
// relative error is that of float16, 2^-11. States and gates are never rounded.
//
// `args` points to `recurrences` structs, at least one: recurrences of the same batch and
// hidden_size that do not need each other, such as those of a bidirectional layer. Each has its own
// seq_len, `reverse`, weights, states and strides, and what one writes may not alias what another
// uses.
//
// The plan comes from plan_sequence (sequence_plan.h) for the current device
// (sequence_device_cuda.h), the same sizes, P and number of recurrences and, of forward and
// backward, the right one. A persistent plan runs as cooperative grids one after the other, each of
// as many recurrences as the plan says, and of one where the current device holds less than the
// plan's. Where there is no such plan, or not even one recurrence's grid can be resident on the
// current device, the same is done by launching step kernels: in float where P is Tf32 or a half
// type, and with sums in another order.
//
// Memory is the device's. Features are contiguous; time and row are reached by strides, in
// elements; a tensor without strides is contiguous. The calls are asynchronous on `stream`,
// allocate nothing, can be captured in a CUDA graph and use no atomics but the barrier's counter.
// workspace has plan.workspace_bytes, aligned to 128, its content free; it is the call's until that
// has finished, so that two streams need two.
//
// They return cudaErrorInvalidValue for a negative size, no recurrence, recurrences of another
// batch or hidden_size than the first, or a plan for others, and else what CUDA's own calls return.
// T or N may be 0.
//
// Accuracy: sums over k are cut into eight, by k alone, each in ascending order and added in order.
// So the same input gives the same bits, and a row's bits do not depend on the batch around it nor
// on the other recurrences as long as the way is the same, persistent or not, which does not depend
// on them either. Activations as in pointwise_scalar.h.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "cuda/sequence_plan.h"
#include "cuda/tf32.h"

namespace rnnfast {

template <class P, class Args>
cudaError_t sequence_cuda(const Args* args, int32_t recurrences, const SequencePlan* plan,
                          void* workspace, cudaStream_t stream);

}  // namespace rnnfast

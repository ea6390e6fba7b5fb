// How the CUDA ops of every cell start their sequence: type of the operands, plan, memory, stream.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "bindings/cuda/device.h"
#include "bindings/layer.h"
#include "cuda/sequence_cuda.h"
#include "cuda/sequence_device_cuda.h"

namespace rnnfast {

// The call's precision, once it is known that the CUDA kernels serve the layer.
inline Precision served_precision(const Layer& layer, const std::string& name) {
  if (layer.batch_sizes) fail(layer.op, ": batch_sizes must be None on CUDA, but were given");
  if (layer.weight_hr) fail(layer.op, ": weight_hr must be None on CUDA, but was given");
  return precision_of(layer.op, name, layer.input.tensor);
}

// Fills what every cell's args struct calls by the same name.
template <class Args>
void fill_sequence(const Layer& layer, bool reverse, Args& args) {
  args.seq_len = layer.seq_len;
  args.batch = layer.batch;
  args.hidden_size = layer.hidden_size;
  args.reverse = reverse;
  args.weight_hh = layer.weight_hh.const_data_ptr();
}

// The same for backward, beside `fill_sequence`.
template <class Args>
void fill_sequence_gradients(const std::optional<SequenceView>& grad_output,
                             const OptionalTensor& grad_h_n, const Tensor& grad_h_0, Args& args) {
  if (grad_output) {
    args.grad_output = grad_output->tensor.const_data_ptr();
    args.grad_output_time = grad_output->time;
    args.grad_output_row = grad_output->row;
  }
  args.grad_h_n = pointer(grad_h_n);
  args.grad_h_0 = grad_h_0.mutable_data_ptr();
}

// Launches the cell of these args on the layer's device, with operands of that precision. The
// workspace has as many bytes as the plan asks for, at least `least_workspace`.
template <class Args>
void launch_sequence(const Layer& layer, int32_t gates, bool backward, Precision precision,
                     const Args& args, int64_t least_workspace = 0) {
  const Tensor& input = layer.input.tensor;
  const TensorDevice device(input);
  const auto check = [&](cudaError_t error) {
    if (error != cudaSuccess) fail(layer.op, ": CUDA says: ", cudaGetErrorString(error));
  };
  const auto with = [&](auto operand) {
    SequenceDevice limits;
    check(sequence_device_cuda(&limits));
    const SequencePlan plan = plan_sequence(
        {layer.batch, layer.hidden_size, gates, sizeof(operand), backward, 1}, limits);
    const int64_t bytes = std::max(plan.workspace_bytes, least_workspace);
    const Tensor workspace = new_tensor(input, {ceil_divide(bytes, sizeof(float))});
    check(sequence_cuda<decltype(operand)>(&args, 1, &plan, workspace.mutable_data_ptr(),
                                           current_stream(input)));
  };
  if (input.scalar_type() == torch::headeronly::ScalarType::Double) return with(double());
  switch (precision) {
    case Precision::bf16:
      return with(__nv_bfloat16());
    case Precision::fp16:
      return with(__half());
    case Precision::tf32:
      return with(Tf32());
    case Precision::fp32:
      return with(float());
  }
}

}  // namespace rnnfast

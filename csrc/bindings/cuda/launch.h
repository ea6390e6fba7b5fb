// How the CUDA ops of every cell start their sequences: type of the operands, plan, memory, stream.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <vector>

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

inline void check_cuda(const char* op, cudaError_t error) {
  if (error != cudaSuccess) fail(op, ": CUDA says: ", cudaGetErrorString(error));
}

// Calls body(an operand of the recurrent product in that precision).
template <class Body>
void with_operand(const Tensor& input, Precision precision, const Body& body) {
  if (input.scalar_type() == torch::headeronly::ScalarType::Double) return body(double());
  switch (precision) {
    case Precision::bf16:
      return body(__nv_bfloat16());
    case Precision::fp16:
      return body(__half());
    case Precision::tf32:
      return body(Tf32());
    case Precision::fp32:
      return body(float());
  }
}

// Whether the recurrences of two layers may be launched together.
inline void check_goes_with(const Layer& first, const Layer& other) {
  const Tensor &a = first.input.tensor, &b = other.input.tensor;
  if (a.scalar_type() != b.scalar_type() || a.get_device_index() != b.get_device_index())
    fail(first.op, ": input must have tensors of one dtype and device, but got others");
  if (first.batch != other.batch || first.hidden_size != other.hidden_size)
    fail(first.op, ": h_0 must have tensors of one shape [batch, hidden_size], but got [",
         first.batch, ", ", first.hidden_size, "] and [", other.batch, ", ", other.hidden_size,
         "]");
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

// One recurrence of a call, about to be launched. Results are what its op returns; `read` are
// tensors besides those of the layer that must live until then.
template <class Args, class Results>
struct Recurrence {
  Layer layer;
  Precision precision;
  Results results;
  std::vector<Tensor> read;
  Args args;

  // Where the kernel finds the tensor, which lives from now on as long as it has to.
  const void* reads(const Tensor& tensor) {
    read.push_back(tensor);
    return tensor.const_data_ptr();
  }
  const void* reads(const OptionalTensor& tensor) { return tensor ? reads(*tensor) : nullptr; }
};

// Fills what every cell's backward struct calls by the same name, beside `fill_sequence`.
template <class Args, class Results>
void fill_sequence_gradients(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                             const Tensor& grad_h_0, Recurrence<Args, Results>& run) {
  const Layer& layer = run.layer;
  Args& args = run.args;
  if (const auto grad = layer.gradient("grad_output", grad_output, layer.hidden_size)) {
    args.grad_output = run.reads(grad->tensor);
    args.grad_output_time = grad->time;
    args.grad_output_row = grad->row;
  }
  args.grad_h_n = run.reads(layer.state_gradient("grad_h_n", grad_h_n));
  args.grad_h_0 = grad_h_0.mutable_data_ptr();
}

// The plan for that on the current device.
inline SequencePlan plan_here(const char* op, const SequenceProblem& problem) {
  SequenceDevice device;
  check_cuda(op, sequence_device_cuda(&device));
  return plan_sequence(problem, device);
}

// Launches recurrences that do not need each other, with operands of their precision. The workspace
// has as many bytes as the plan asks for, at least `least_workspace`.
template <class Run>
void launch(const std::vector<Run>& runs, int32_t gates, bool backward, int64_t least_workspace) {
  const Layer& layer = runs.front().layer;
  std::vector<decltype(Run::args)> args;
  for (const Run& run : runs) {
    check_goes_with(layer, run.layer);
    args.push_back(run.args);
  }
  const Tensor& input = layer.input.tensor;
  const TensorDevice device(input);
  const auto count = static_cast<int32_t>(args.size());
  with_operand(input, runs.front().precision, [&](auto operand) {
    const SequencePlan plan = plan_here(
        layer.op, {layer.batch, layer.hidden_size, gates, sizeof(operand), backward, count});
    const int64_t bytes = std::max(plan.workspace_bytes, least_workspace);
    const Tensor workspace = new_tensor(input, {ceil_divide(bytes, sizeof(float))});
    check_cuda(layer.op,
               sequence_cuda<decltype(operand)>(
                   args.data(), count, &plan, workspace.mutable_data_ptr(), current_stream(input)));
  });
}

// What finish(run, call) makes of every call, once prepare(call) has made its Run and all have been
// launched.
template <class Run, class Call, class Prepare, class Finish>
auto launched(const std::vector<Call>& calls, int32_t gates, bool backward, const Prepare& prepare,
              const Finish& finish, int64_t least_workspace = 0) {
  std::vector<Run> runs;
  for (const Call& call : calls) runs.push_back(prepare(call));
  launch(runs, gates, backward, least_workspace);
  std::vector<decltype(finish(runs.front(), calls.front()))> results;
  for (size_t i = 0; i < runs.size(); ++i) results.push_back(finish(runs[i], calls[i]));
  return results;
}

}  // namespace rnnfast

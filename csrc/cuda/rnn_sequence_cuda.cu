// What the plain RNN, tanh or relu, does with its product in the kernels of sequence.cuh, and its
// steps where those do not run.
#include "cuda/rnn_sequence_cuda.h"

#include "cuda/pointwise_scalar.h"
#include "cuda/rnn_step_cuda.h"
#include "cuda/sequence.cuh"

namespace rnnfast {
namespace {

struct RnnCell {
  using Forward = RnnSequenceCuda;
  using Backward = RnnSequenceBackwardCuda;
  static constexpr int kGates = 1;
  static constexpr bool kCarriesGradH = false;

  template <class Args>
  static bool persistent(const Args&) {
    return true;
  }

  struct ForwardInputs {
    float x;
  };

  static __device__ ForwardInputs load(const Forward& args, const SequenceItem& item) {
    return {floats(args.gates_x)[item.now(args.gates_x_time, args.gates_x_row)]};
  }

  static __device__ float forward(const Forward& args, const SequenceItem&, const ForwardInputs& in,
                                  const float (&product)[1]) {
    const float pre = in.x + product[0];
    return args.relu ? relu(pre) : tanh(pre);
  }

  struct BackwardInputs {
    float h, grad_h;
  };

  static __device__ BackwardInputs load_backward(const Backward& args, const SequenceItem& item) {
    return {floats(args.output)[item.now(args.output_time, args.output_row)],
            load_grad_h(args, item)};
  }

  static __device__ void backward(const Backward& args, const SequenceItem& item,
                                  const BackwardInputs& in, float product, float (&operand)[1]) {
    const float grad_h = in.grad_h + product;
    operand[0] = args.relu ? relu_backward(in.h, grad_h) : tanh_backward(in.h, grad_h);
    floats(args.grad_gates)[item.now(args.grad_gates_time, args.grad_gates_row)] = operand[0];
  }

  template <class T>
  static cudaError_t launch_step(const Forward& args, const SequenceStep& step,
                                 cudaStream_t stream) {
    const bool first = step.previous < 0;
    RnnStepCuda out = {};
    out.batch = args.batch;
    out.hidden_size = args.hidden_size;
    out.relu = args.relu;
    out.gates_x = offset<T>(args.gates_x, step.time * args.gates_x_time);
    out.gates_x_row = args.gates_x_row;
    out.h_prev = first ? args.h_0 : offset<T>(args.output, step.previous * args.output_time);
    out.h_prev_row = first ? args.hidden_size : args.output_row;
    out.weight_hh = args.weight_hh;
    out.h = offset<T>(args.output, step.time * args.output_time);
    out.h_row = args.output_row;
    return rnn_step_cuda<T>(&out, stream);
  }

  template <class T>
  static cudaError_t copy_final_state(const Forward& args, cudaStream_t stream) {
    return copy_h_n<T>(args, stream);
  }

  template <class T>
  static cudaError_t copy_final_gradient(const Backward& args, cudaStream_t stream) {
    return copy_state<T>(args, args.grad_h_n, args.hidden_size, args.grad_h_0, stream);
  }

  template <class T>
  static cudaError_t launch_step_backward(const Backward& args, const SequenceStep& step, void*,
                                          cudaStream_t stream) {
    RnnStepBackwardCuda out = {};
    out.batch = args.batch;
    out.hidden_size = args.hidden_size;
    out.relu = args.relu;
    out.h = offset<T>(args.output, step.time * args.output_time);
    out.h_row = args.output_row;
    out.grad_output = offset<T>(args.grad_output, step.time * args.grad_output_time);
    out.grad_output_row = args.grad_output_row;
    out.grad_h = args.grad_h_0;
    out.grad_gates = offset<T>(args.grad_gates, step.time * args.grad_gates_time);
    out.grad_gates_row = args.grad_gates_row;
    const cudaError_t error = rnn_step_backward_cuda<T>(&out, stream);
    if (error != cudaSuccess) return error;
    const TransposedProduct product = {
        args.batch,       args.hidden_size, out.grad_gates, args.grad_gates_row,
        args.hidden_size, args.weight_hh,   args.grad_h_0,  false};
    return rnnfast::launch_step(transposed_product_kernel<T>, product, stream);
  }
};

}  // namespace

RNNFAST_SEQUENCE(RnnCell)

}  // namespace rnnfast

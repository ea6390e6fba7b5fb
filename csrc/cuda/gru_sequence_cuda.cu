// What GRU does with its products in the kernels of sequence.cuh, with the reset after the product,
// and its steps where those do not run, in both forms.
#include "cuda/gru_sequence_cuda.h"

#include "cuda/gru_step_cuda.h"
#include "cuda/pointwise_scalar.h"
#include "cuda/sequence.cuh"

namespace rnnfast {
namespace {

struct GruCell {
  using Forward = GruSequenceCuda;
  using Backward = GruSequenceBackwardCuda;
  static constexpr int kGates = 3;
  // What flows past the product, by the blend, waits in grad_h_0 for the step before.
  static constexpr bool kCarriesGradH = true;

  template <class Args>
  static bool persistent(const Args& args) {
    return args.reset_after;
  }

  struct ForwardInputs {
    float x[3], bias[3], h_prev;
  };

  static __device__ ForwardInputs load(const Forward& args, const SequenceItem& item) {
    const float* x = floats(args.gates_x) + item.now(args.gates_x_time, args.gates_x_row);
    ForwardInputs in;
#pragma unroll
    for (int g = 0; g < 3; ++g) {
      in.x[g] = x[g * args.hidden_size];
      in.bias[g] = load_or_zero<float>(args.bias_hh, g * args.hidden_size + item.unit);
    }
    in.h_prev = load_h_prev(args, item);
    return in;
  }

  static __device__ float forward(const Forward& args, const SequenceItem& item,
                                  const ForwardInputs& in, const float (&product)[3]) {
    const float r = sigmoid(in.x[0] + (product[0] + in.bias[0]));
    const float z = sigmoid(in.x[1] + (product[1] + in.bias[1]));
    const float n_hidden = product[2] + in.bias[2];
    const float n = tanh(in.x[2] + r * n_hidden);
    if (args.gates != nullptr) {
      float* kept = floats(args.gates) + item.now(args.gates_time, args.gates_row);
      kept[0] = r;
      kept[args.hidden_size] = z;
      kept[2 * args.hidden_size] = n;
      kept[3 * args.hidden_size] = n_hidden;
    }
    return gru_blend(z, n, in.h_prev);
  }

  struct BackwardInputs {
    float r, z, n, n_hidden, h_prev, grad_h;
  };

  static __device__ BackwardInputs load_backward(const Backward& args, const SequenceItem& item) {
    const float* kept = floats(args.gates) + item.now(args.gates_time, args.gates_row);
    const int64_t hidden_size = args.hidden_size;
    const float grad_h = load_grad_h(args, item);
    return {kept[0],
            kept[hidden_size],
            kept[2 * hidden_size],
            kept[3 * hidden_size],
            load_h_prev(args, item),
            item.step.last ? grad_h : grad_h + floats(args.grad_h_0)[item.state()]};
  }

  static __device__ void backward(const Backward& args, const SequenceItem& item,
                                  const BackwardInputs& in, float product, float (&operand)[3]) {
    float grad_pre_z, grad_pre_n, carry;
    gru_blend_backward(in.z, in.n, in.h_prev, in.grad_h + product, grad_pre_z, grad_pre_n, carry);
    floats(args.grad_h_0)[item.state()] = carry;
    operand[0] = sigmoid_backward(in.r, grad_pre_n * in.n_hidden);
    operand[1] = grad_pre_z;
    operand[2] = grad_pre_n * in.r;
    float* grad_x =
        floats(args.grad_gates_x) + item.now(args.grad_gates_x_time, args.grad_gates_x_row);
    float* grad_hidden =
        floats(args.grad_gates_h) + item.now(args.grad_gates_h_time, args.grad_gates_h_row);
#pragma unroll
    for (int g = 0; g < 3; ++g) {
      grad_x[g * args.hidden_size] = g == 2 ? grad_pre_n : operand[g];
      grad_hidden[g * args.hidden_size] = operand[g];
    }
  }

  template <class T>
  static cudaError_t launch_step(const Forward& args, const SequenceStep& step,
                                 cudaStream_t stream) {
    const bool first = step.previous < 0;
    GruStepCuda out = {};
    out.batch = args.batch;
    out.hidden_size = args.hidden_size;
    out.reset_after = args.reset_after;
    out.gates_x = offset<T>(args.gates_x, step.time * args.gates_x_time);
    out.gates_x_row = args.gates_x_row;
    out.h_prev = first ? args.h_0 : offset<T>(args.output, step.previous * args.output_time);
    out.h_prev_row = first ? args.hidden_size : args.output_row;
    out.weight_hh = args.weight_hh;
    out.bias_hh = args.bias_hh;
    out.h = offset<T>(args.output, step.time * args.output_time);
    out.h_row = args.output_row;
    out.gates = offset<T>(args.gates, step.time * args.gates_time);
    out.gates_row = args.gates_row;
    return gru_step_cuda<T>(&out, stream);
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
  static cudaError_t launch_step_backward(const Backward& args, const SequenceStep& step,
                                          void* workspace, cudaStream_t stream) {
    const bool first = step.previous < 0;
    const int64_t hidden_size = args.hidden_size;
    GruStepBackwardCuda out = {};
    out.batch = args.batch;
    out.hidden_size = hidden_size;
    out.reset_after = args.reset_after;
    out.gates = offset<T>(args.gates, step.time * args.gates_time);
    out.gates_row = args.gates_row;
    out.h_prev = first ? args.h_0 : offset<T>(args.output, step.previous * args.output_time);
    out.h_prev_row = first ? hidden_size : args.output_row;
    out.grad_output = offset<T>(args.grad_output, step.time * args.grad_output_time);
    out.grad_output_row = args.grad_output_row;
    out.grad_h = args.grad_h_0;
    out.grad_gates_x = offset<T>(args.grad_gates_x, step.time * args.grad_gates_x_time);
    out.grad_gates_x_row = args.grad_gates_x_row;
    out.grad_gates_h = offset<T>(args.grad_gates_h, step.time * args.grad_gates_h_time);
    out.grad_gates_h_row = args.grad_gates_h_row;
    out.grad_h_prev = args.grad_h_0;
    out.grad_reset_h = workspace;
    cudaError_t error = gru_step_backward_cuda<T>(&out, stream);
    if (error != cudaSuccess) return error;

    TransposedProduct product = {
        args.batch,      hidden_size,    out.grad_gates_h, args.grad_gates_h_row,
        3 * hidden_size, args.weight_hh, args.grad_h_0,    true};
    if (!args.reset_after) {
      const TransposedProduct reset = {args.batch,
                                       hidden_size,
                                       offset<T>(out.grad_gates_x, 2 * hidden_size),
                                       args.grad_gates_x_row,
                                       hidden_size,
                                       offset<T>(args.weight_hh, 2 * hidden_size * hidden_size),
                                       workspace,
                                       false};
      error = rnnfast::launch_step(transposed_product_kernel<T>, reset, stream);
      if (error != cudaSuccess) return error;
      error = gru_reset_backward_cuda<T>(&out, stream);
      if (error != cudaSuccess) return error;
      product.a = out.grad_gates_x;
      product.a_row = args.grad_gates_x_row;
      product.depth = 2 * hidden_size;
    }
    return rnnfast::launch_step(transposed_product_kernel<T>, product, stream);
  }
};

}  // namespace

RNNFAST_SEQUENCE(GruCell)

}  // namespace rnnfast

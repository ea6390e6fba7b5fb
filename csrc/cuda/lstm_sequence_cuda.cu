// What LSTM does with its products in the kernels of sequence.cuh, and its steps where those do not
// run. c_t goes from step to step through memory that one thread alone reads and writes.
#include "cuda/lstm_sequence_cuda.h"

#include "cuda/lstm_step_cuda.h"
#include "cuda/pointwise_scalar.h"
#include "cuda/sequence.cuh"

namespace rnnfast {
namespace {

struct LstmCell {
  using Forward = LstmSequenceCuda;
  using Backward = LstmSequenceBackwardCuda;
  static constexpr int kGates = 4;
  static constexpr bool kCarriesGradH = false;

  template <class Args>
  static bool persistent(const Args&) {
    return true;
  }

  struct ForwardInputs {
    float x[4], c_prev;
  };

  static __device__ ForwardInputs load(const Forward& args, const SequenceItem& item) {
    const float* x = floats(args.gates_x) + item.now(args.gates_x_time, args.gates_x_row);
    const int64_t hidden_size = args.hidden_size;
    const float c_prev = item.step.previous < 0 ? floats(args.c_0)[item.state()]
                         : args.cells != nullptr
                             ? floats(args.cells)[item.before(args.cells_time, args.cells_row)]
                             : floats(args.c_n)[item.state()];
    return {{x[0], x[hidden_size], x[2 * hidden_size], x[3 * hidden_size]}, c_prev};
  }

  static __device__ float forward(const Forward& args, const SequenceItem& item,
                                  const ForwardInputs& in, const float (&product)[4]) {
    LstmGates<float> gates = {in.x[0] + product[0], in.x[1] + product[1], in.x[2] + product[2],
                              in.x[3] + product[3]};
    float c, h;
    lstm_pointwise(gates, in.c_prev, c, h);
    if (args.gates != nullptr) {
      float* kept = floats(args.gates) + item.now(args.gates_time, args.gates_row);
      kept[0] = gates.i;
      kept[args.hidden_size] = gates.f;
      kept[2 * args.hidden_size] = gates.g;
      kept[3 * args.hidden_size] = gates.o;
    }
    if (args.cells != nullptr) floats(args.cells)[item.now(args.cells_time, args.cells_row)] = c;
    if (args.cells == nullptr || item.step.last) floats(args.c_n)[item.state()] = c;
    return h;
  }

  struct BackwardInputs {
    LstmGates<float> gates;
    float c, c_prev, grad_h, grad_c;
  };

  static __device__ BackwardInputs load_backward(const Backward& args, const SequenceItem& item) {
    const float* kept = floats(args.gates) + item.now(args.gates_time, args.gates_row);
    const int64_t hidden_size = args.hidden_size;
    const float c = floats(args.cells)[item.now(args.cells_time, args.cells_row)];
    const float c_prev = item.step.previous < 0
                             ? floats(args.c_0)[item.state()]
                             : floats(args.cells)[item.before(args.cells_time, args.cells_row)];
    const float grad_c = item.step.last ? load_or_zero<float>(args.grad_c_n, item.state())
                                        : floats(args.grad_c_0)[item.state()];
    return {{kept[0], kept[hidden_size], kept[2 * hidden_size], kept[3 * hidden_size]},
            c,
            c_prev,
            load_grad_h(args, item),
            grad_c};
  }

  static __device__ void backward(const Backward& args, const SequenceItem& item,
                                  const BackwardInputs& in, float product, float (&operand)[4]) {
    float grad_c = in.grad_c;
    const LstmGates<float> grad_pre =
        lstm_pointwise_backward(in.gates, in.c, in.c_prev, in.grad_h + product, grad_c);
    floats(args.grad_c_0)[item.state()] = grad_c;
    operand[0] = grad_pre.i;
    operand[1] = grad_pre.f;
    operand[2] = grad_pre.g;
    operand[3] = grad_pre.o;
    float* grad_gates =
        floats(args.grad_gates) + item.now(args.grad_gates_time, args.grad_gates_row);
#pragma unroll
    for (int g = 0; g < 4; ++g) grad_gates[g * args.hidden_size] = operand[g];
  }

  template <class T>
  static cudaError_t launch_step(const Forward& args, const SequenceStep& step,
                                 cudaStream_t stream) {
    const bool first = step.previous < 0, keeps = args.cells != nullptr;
    const int64_t hidden_size = args.hidden_size;
    LstmStepCuda out = {};
    out.batch = args.batch;
    out.hidden_size = hidden_size;
    out.gates_x = offset<T>(args.gates_x, step.time * args.gates_x_time);
    out.gates_x_row = args.gates_x_row;
    out.h_prev = first ? args.h_0 : offset<T>(args.output, step.previous * args.output_time);
    out.h_prev_row = first ? hidden_size : args.output_row;
    out.c_prev = first   ? args.c_0
                 : keeps ? offset<T>(args.cells, step.previous * args.cells_time)
                         : args.c_n;
    out.c_prev_row = first || !keeps ? hidden_size : args.cells_row;
    out.weight_hh = args.weight_hh;
    out.h = offset<T>(args.output, step.time * args.output_time);
    out.h_row = args.output_row;
    out.c = keeps ? offset<T>(args.cells, step.time * args.cells_time) : args.c_n;
    out.c_row = keeps ? args.cells_row : hidden_size;
    out.gates = offset<T>(args.gates, step.time * args.gates_time);
    out.gates_row = args.gates_row;
    return lstm_step_cuda<T>(&out, stream);
  }

  template <class T>
  static cudaError_t copy_final_state(const Forward& args, cudaStream_t stream) {
    const cudaError_t error = copy_h_n<T>(args, stream);
    if (error != cudaSuccess) return error;
    if (args.seq_len == 0) {
      return copy_state<T>(args, args.c_0, args.hidden_size, args.c_n, stream);
    }
    if (args.cells == nullptr) return cudaSuccess;
    const SequenceStep last(args.seq_len, args.reverse, args.seq_len - 1);
    return copy_state<T>(args, offset<T>(args.cells, last.time * args.cells_time), args.cells_row,
                         args.c_n, stream);
  }

  template <class T>
  static cudaError_t copy_final_gradient(const Backward& args, cudaStream_t stream) {
    const cudaError_t error =
        copy_state<T>(args, args.grad_h_n, args.hidden_size, args.grad_h_0, stream);
    return error != cudaSuccess
               ? error
               : copy_state<T>(args, args.grad_c_n, args.hidden_size, args.grad_c_0, stream);
  }

  template <class T>
  static cudaError_t launch_step_backward(const Backward& args, const SequenceStep& step, void*,
                                          cudaStream_t stream) {
    const bool first = step.previous < 0;
    const int64_t hidden_size = args.hidden_size;
    LstmStepBackwardCuda out = {};
    out.batch = args.batch;
    out.hidden_size = hidden_size;
    out.gates = offset<T>(args.gates, step.time * args.gates_time);
    out.gates_row = args.gates_row;
    out.c = offset<T>(args.cells, step.time * args.cells_time);
    out.c_row = args.cells_row;
    out.c_prev = first ? args.c_0 : offset<T>(args.cells, step.previous * args.cells_time);
    out.c_prev_row = first ? hidden_size : args.cells_row;
    out.grad_output = offset<T>(args.grad_output, step.time * args.grad_output_time);
    out.grad_output_row = args.grad_output_row;
    out.grad_h = args.grad_h_0;
    out.grad_c = args.grad_c_0;
    out.grad_gates = offset<T>(args.grad_gates, step.time * args.grad_gates_time);
    out.grad_gates_row = args.grad_gates_row;
    const cudaError_t error = lstm_step_backward_cuda<T>(&out, stream);
    if (error != cudaSuccess) return error;
    const TransposedProduct product = {
        args.batch,      hidden_size,    out.grad_gates, args.grad_gates_row,
        4 * hidden_size, args.weight_hh, args.grad_h_0,  false};
    return rnnfast::launch_step(transposed_product_kernel<T>, product, stream);
  }
};

}  // namespace

RNNFAST_SEQUENCE(LstmCell)

}  // namespace rnnfast

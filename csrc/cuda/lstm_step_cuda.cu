// LSTM step kernels. A thread owns one unit of one row, as step_tile.cuh says: forward is the
// product of its four gates with the pointwise part as epilogue, backward the pointwise part alone.
#include "cuda/lstm_step_cuda.h"

#include "cuda/pointwise_scalar.h"
#include "cuda/step_tile.cuh"

namespace rnnfast {
namespace {

template <class T>
__global__ void __launch_bounds__(kStepThreads) lstm_step_kernel(LstmStepCuda args) {
  const StepTile tile(args.batch, args.hidden_size);
  T product[4];
  recurrent_product(tile, static_cast<const T*>(args.h_prev), args.h_prev_row,
                    static_cast<const T*>(args.weight_hh), product);
  if (!tile.inside()) return;

  const int64_t hidden_size = args.hidden_size;
  const T* x = static_cast<const T*>(args.gates_x) + tile.row * args.gates_x_row + tile.unit;
  LstmGates<T> gates = {x[0] + product[0], x[hidden_size] + product[1],
                        x[2 * hidden_size] + product[2], x[3 * hidden_size] + product[3]};
  const T c_prev = static_cast<const T*>(args.c_prev)[tile.row * args.c_prev_row + tile.unit];
  T c, h;
  lstm_pointwise(gates, c_prev, c, h);

  static_cast<T*>(args.h)[tile.row * args.h_row + tile.unit] = h;
  static_cast<T*>(args.c)[tile.row * args.c_row + tile.unit] = c;
  if (args.gates != nullptr) {
    T* kept = static_cast<T*>(args.gates) + tile.row * args.gates_row + tile.unit;
    kept[0] = gates.i;
    kept[hidden_size] = gates.f;
    kept[2 * hidden_size] = gates.g;
    kept[3 * hidden_size] = gates.o;
  }
}

template <class T>
__global__ void __launch_bounds__(kStepThreads)
    lstm_step_backward_kernel(LstmStepBackwardCuda args) {
  const StepTile tile(args.batch, args.hidden_size);
  if (!tile.inside()) return;

  const int64_t hidden_size = args.hidden_size;
  const int64_t here = tile.row * hidden_size + tile.unit;
  const T* kept = static_cast<const T*>(args.gates) + tile.row * args.gates_row + tile.unit;
  const LstmGates<T> gates = {kept[0], kept[hidden_size], kept[2 * hidden_size],
                              kept[3 * hidden_size]};
  const T c = static_cast<const T*>(args.c)[tile.row * args.c_row + tile.unit];
  const T c_prev = static_cast<const T*>(args.c_prev)[tile.row * args.c_prev_row + tile.unit];
  const T grad_h = load_or_zero<T>(args.grad_output, tile.row * args.grad_output_row + tile.unit) +
                   load_or_zero<T>(args.grad_h, here);
  T* grad_c = static_cast<T*>(args.grad_c) + here;
  const LstmGates<T> grad_pre = lstm_pointwise_backward(gates, c, c_prev, grad_h, *grad_c);

  T* grad_gates = static_cast<T*>(args.grad_gates) + tile.row * args.grad_gates_row + tile.unit;
  grad_gates[0] = grad_pre.i;
  grad_gates[hidden_size] = grad_pre.f;
  grad_gates[2 * hidden_size] = grad_pre.g;
  grad_gates[3 * hidden_size] = grad_pre.o;
}

}  // namespace

template <class T>
cudaError_t lstm_step_cuda(const LstmStepCuda* args, cudaStream_t stream) {
  return launch_step(lstm_step_kernel<T>, *args, stream);
}

template <class T>
cudaError_t lstm_step_backward_cuda(const LstmStepBackwardCuda* args, cudaStream_t stream) {
  return launch_step(lstm_step_backward_kernel<T>, *args, stream);
}

template cudaError_t lstm_step_cuda<float>(const LstmStepCuda*, cudaStream_t);
template cudaError_t lstm_step_cuda<double>(const LstmStepCuda*, cudaStream_t);
template cudaError_t lstm_step_backward_cuda<float>(const LstmStepBackwardCuda*, cudaStream_t);
template cudaError_t lstm_step_backward_cuda<double>(const LstmStepBackwardCuda*, cudaStream_t);

}  // namespace rnnfast

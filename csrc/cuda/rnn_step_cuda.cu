// Plain RNN step kernels, tanh and relu. A thread owns one unit of one row, as step_tile.cuh says.
#include "cuda/rnn_step_cuda.h"

#include "cuda/pointwise_scalar.h"
#include "cuda/step_tile.cuh"

namespace rnnfast {
namespace {

template <class T>
__global__ void __launch_bounds__(kStepThreads) rnn_step_kernel(RnnStepCuda args) {
  const StepTile tile(args.batch, args.hidden_size);
  T product[1];
  recurrent_product(tile, static_cast<const T*>(args.h_prev), args.h_prev_row,
                    static_cast<const T*>(args.weight_hh), product);
  if (!tile.inside()) return;

  const T x = static_cast<const T*>(args.gates_x)[tile.row * args.gates_x_row + tile.unit];
  const T pre = x + product[0];
  static_cast<T*>(args.h)[tile.row * args.h_row + tile.unit] = args.relu ? relu(pre) : tanh(pre);
}

template <class T>
__global__ void __launch_bounds__(kStepThreads) rnn_step_backward_kernel(RnnStepBackwardCuda args) {
  const StepTile tile(args.batch, args.hidden_size);
  if (!tile.inside()) return;

  const T h = static_cast<const T*>(args.h)[tile.row * args.h_row + tile.unit];
  const T grad_h = load_or_zero<T>(args.grad_output, tile.row * args.grad_output_row + tile.unit) +
                   load_or_zero<T>(args.grad_h, tile.row * args.hidden_size + tile.unit);
  static_cast<T*>(args.grad_gates)[tile.row * args.grad_gates_row + tile.unit] =
      args.relu ? relu_backward(h, grad_h) : tanh_backward(h, grad_h);
}

}  // namespace

template <class T>
cudaError_t rnn_step_cuda(const RnnStepCuda* args, cudaStream_t stream) {
  return launch_step(rnn_step_kernel<T>, *args, stream);
}

template <class T>
cudaError_t rnn_step_backward_cuda(const RnnStepBackwardCuda* args, cudaStream_t stream) {
  return launch_step(rnn_step_backward_kernel<T>, *args, stream);
}

template cudaError_t rnn_step_cuda<float>(const RnnStepCuda*, cudaStream_t);
template cudaError_t rnn_step_cuda<double>(const RnnStepCuda*, cudaStream_t);
template cudaError_t rnn_step_backward_cuda<float>(const RnnStepBackwardCuda*, cudaStream_t);
template cudaError_t rnn_step_backward_cuda<double>(const RnnStepBackwardCuda*, cudaStream_t);

}  // namespace rnnfast

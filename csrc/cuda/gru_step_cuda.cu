// GRU step kernels, both forms. A thread owns one unit of one row, as step_tile.cuh says.
//
// Reset after the product, a step is one kernel of three gates. Reset before it, the product of n
// needs r * h_{t-1} of every unit: two kernels, r and z first, then n, with the launch between them
// as the barrier.
#include "cuda/gru_step_cuda.h"

#include "cuda/pointwise_scalar.h"
#include "cuda/step_tile.cuh"

namespace rnnfast {
namespace {

template <class T>
__global__ void __launch_bounds__(kStepThreads) gru_step_kernel(GruStepCuda args) {
  const StepTile tile(args.batch, args.hidden_size);
  T product[3];
  recurrent_product(tile, static_cast<const T*>(args.h_prev), args.h_prev_row,
                    static_cast<const T*>(args.weight_hh), product);
  if (!tile.inside()) return;

  const int64_t hidden_size = args.hidden_size;
  const T* x = static_cast<const T*>(args.gates_x) + tile.row * args.gates_x_row + tile.unit;
  const T h_prev = static_cast<const T*>(args.h_prev)[tile.row * args.h_prev_row + tile.unit];
  const T r = sigmoid(x[0] + (product[0] + load_or_zero<T>(args.bias_hh, tile.unit)));
  const T z = sigmoid(x[hidden_size] +
                      (product[1] + load_or_zero<T>(args.bias_hh, hidden_size + tile.unit)));
  const T n_hidden = product[2] + load_or_zero<T>(args.bias_hh, 2 * hidden_size + tile.unit);
  const T n = tanh(x[2 * hidden_size] + r * n_hidden);

  static_cast<T*>(args.h)[tile.row * args.h_row + tile.unit] = gru_blend(z, n, h_prev);
  if (args.gates != nullptr) {
    T* kept = static_cast<T*>(args.gates) + tile.row * args.gates_row + tile.unit;
    kept[0] = r;
    kept[hidden_size] = z;
    kept[2 * hidden_size] = n;
    kept[3 * hidden_size] = n_hidden;
  }
}

template <class T>
__global__ void __launch_bounds__(kStepThreads) gru_reset_update_kernel(GruStepCuda args) {
  const StepTile tile(args.batch, args.hidden_size);
  T product[2];
  recurrent_product(tile, static_cast<const T*>(args.h_prev), args.h_prev_row,
                    static_cast<const T*>(args.weight_hh), product);
  if (!tile.inside()) return;

  const int64_t hidden_size = args.hidden_size;
  const T* x = static_cast<const T*>(args.gates_x) + tile.row * args.gates_x_row + tile.unit;
  const T h_prev = static_cast<const T*>(args.h_prev)[tile.row * args.h_prev_row + tile.unit];
  const T r = sigmoid(x[0] + (product[0] + load_or_zero<T>(args.bias_hh, tile.unit)));
  const T z = sigmoid(x[hidden_size] +
                      (product[1] + load_or_zero<T>(args.bias_hh, hidden_size + tile.unit)));

  T* kept = static_cast<T*>(args.gates) + tile.row * args.gates_row + tile.unit;
  kept[0] = r;
  kept[hidden_size] = z;
  kept[3 * hidden_size] = r * h_prev;
}

template <class T>
__global__ void __launch_bounds__(kStepThreads) gru_candidate_kernel(GruStepCuda args) {
  const StepTile tile(args.batch, args.hidden_size);
  const int64_t hidden_size = args.hidden_size;
  T product[1];
  recurrent_product(tile, static_cast<const T*>(args.gates) + 3 * hidden_size, args.gates_row,
                    static_cast<const T*>(args.weight_hh) + 2 * hidden_size * hidden_size, product);
  if (!tile.inside()) return;

  const T* x = static_cast<const T*>(args.gates_x) + tile.row * args.gates_x_row + tile.unit;
  const T h_prev = static_cast<const T*>(args.h_prev)[tile.row * args.h_prev_row + tile.unit];
  T* kept = static_cast<T*>(args.gates) + tile.row * args.gates_row + tile.unit;
  const T z = kept[hidden_size];
  const T n = tanh(x[2 * hidden_size] +
                   (product[0] + load_or_zero<T>(args.bias_hh, 2 * hidden_size + tile.unit)));
  kept[2 * hidden_size] = n;
  static_cast<T*>(args.h)[tile.row * args.h_row + tile.unit] = gru_blend(z, n, h_prev);
}

template <class T>
__global__ void __launch_bounds__(kStepThreads) gru_step_backward_kernel(GruStepBackwardCuda args) {
  const StepTile tile(args.batch, args.hidden_size);
  if (!tile.inside()) return;

  const int64_t hidden_size = args.hidden_size;
  const int64_t here = tile.row * hidden_size + tile.unit;
  const T* kept = static_cast<const T*>(args.gates) + tile.row * args.gates_row + tile.unit;
  const T r = kept[0], z = kept[hidden_size], n = kept[2 * hidden_size];
  const T h_prev = static_cast<const T*>(args.h_prev)[tile.row * args.h_prev_row + tile.unit];
  const T grad_h = load_or_zero<T>(args.grad_output, tile.row * args.grad_output_row + tile.unit) +
                   load_or_zero<T>(args.grad_h, here);
  T grad_pre_z, grad_pre_n, carry;
  gru_blend_backward(z, n, h_prev, grad_h, grad_pre_z, grad_pre_n, carry);

  T* grad_x = static_cast<T*>(args.grad_gates_x) + tile.row * args.grad_gates_x_row + tile.unit;
  grad_x[hidden_size] = grad_pre_z;
  grad_x[2 * hidden_size] = grad_pre_n;
  static_cast<T*>(args.grad_h_prev)[here] = carry;
  if (args.reset_after) {
    const T grad_pre_r = sigmoid_backward(r, grad_pre_n * kept[3 * hidden_size]);
    T* grad_hidden =
        static_cast<T*>(args.grad_gates_h) + tile.row * args.grad_gates_h_row + tile.unit;
    grad_x[0] = grad_pre_r;
    grad_hidden[0] = grad_pre_r;
    grad_hidden[hidden_size] = grad_pre_z;
    grad_hidden[2 * hidden_size] = grad_pre_n * r;
  }
}

template <class T>
__global__ void __launch_bounds__(kStepThreads)
    gru_reset_backward_kernel(GruStepBackwardCuda args) {
  const StepTile tile(args.batch, args.hidden_size);
  if (!tile.inside()) return;

  const int64_t here = tile.row * args.hidden_size + tile.unit;
  const T r = static_cast<const T*>(args.gates)[tile.row * args.gates_row + tile.unit];
  const T h_prev = static_cast<const T*>(args.h_prev)[tile.row * args.h_prev_row + tile.unit];
  const T grad_reset_h = static_cast<const T*>(args.grad_reset_h)[here];
  static_cast<T*>(args.grad_gates_x)[tile.row * args.grad_gates_x_row + tile.unit] =
      sigmoid_backward(r, grad_reset_h * h_prev);
  static_cast<T*>(args.grad_h_prev)[here] += grad_reset_h * r;
}

}  // namespace

template <class T>
cudaError_t gru_step_cuda(const GruStepCuda* args, cudaStream_t stream) {
  if (args->reset_after) return launch_step(gru_step_kernel<T>, *args, stream);
  if (args->gates == nullptr) return cudaErrorInvalidValue;
  const cudaError_t error = launch_step(gru_reset_update_kernel<T>, *args, stream);
  return error != cudaSuccess ? error : launch_step(gru_candidate_kernel<T>, *args, stream);
}

template <class T>
cudaError_t gru_step_backward_cuda(const GruStepBackwardCuda* args, cudaStream_t stream) {
  return launch_step(gru_step_backward_kernel<T>, *args, stream);
}

template <class T>
cudaError_t gru_reset_backward_cuda(const GruStepBackwardCuda* args, cudaStream_t stream) {
  return launch_step(gru_reset_backward_kernel<T>, *args, stream);
}

template cudaError_t gru_step_cuda<float>(const GruStepCuda*, cudaStream_t);
template cudaError_t gru_step_cuda<double>(const GruStepCuda*, cudaStream_t);
template cudaError_t gru_step_backward_cuda<float>(const GruStepBackwardCuda*, cudaStream_t);
template cudaError_t gru_step_backward_cuda<double>(const GruStepBackwardCuda*, cudaStream_t);
template cudaError_t gru_reset_backward_cuda<float>(const GruStepBackwardCuda*, cudaStream_t);
template cudaError_t gru_reset_backward_cuda<double>(const GruStepBackwardCuda*, cudaStream_t);

}  // namespace rnnfast

// rnnfast._cuda: loading it registers the CUDA kernels of the ops in torch.ops.rnnfast. It needs a
// CUDA build of torch, and rnnfast._C loaded before.
#include "bindings/cuda/ops.h"

STABLE_TORCH_LIBRARY_IMPL(rnnfast, CUDA, m) {
  rnnfast::register_lstm_cuda(m);
  rnnfast::register_gru_cuda(m);
  rnnfast::register_rnn_cuda(m);
  rnnfast::register_concurrent_cuda(m);
}

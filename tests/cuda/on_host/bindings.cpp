// The ops of csrc/bindings/cuda on CPU tensors, under a name of their own.
#include "bindings/cuda/ops.h"

STABLE_TORCH_LIBRARY_IMPL(rnnfast_on_host, CPU, m) {
  rnnfast::register_lstm_cuda(m);
  rnnfast::register_gru_cuda(m);
  rnnfast::register_rnn_cuda(m);
  rnnfast::register_concurrent_cuda(m);
}

// The ops of each cell on CUDA tensors, to be registered for a dispatch key. They serve padded
// sequences without a projection.
#pragma once

#include <torch/csrc/stable/library.h>

namespace rnnfast {

using Registry = torch::stable::detail::StableLibrary;

void register_lstm_cuda(Registry& m);
void register_gru_cuda(Registry& m);
void register_rnn_cuda(Registry& m);
void register_concurrent_cuda(Registry& m);

}  // namespace rnnfast

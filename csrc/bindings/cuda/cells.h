// Forward and backward of each cell on CUDA tensors, for recurrences that do not need each other:
// all of one dtype, device, batch, hidden_size and precision, and at least one. They are launched
// at once.
#pragma once

#include <vector>

#include "bindings/gru.h"
#include "bindings/lstm.h"
#include "bindings/rnn.h"

namespace rnnfast {

// What every cell's backward is called with.
struct BackwardCall {
  const char* op;
  const OptionalTensor &grad_output, &grad_h_n;
  const Tensor &input, &h_0, &weight_ih, &weight_hh, &output;
  const OptionalTensor& batch_sizes;
  bool batch_first, reverse;
  const std::string& precision;
  bool need_input, need_weights, need_bias;
};

struct LstmBackwardCall : BackwardCall {
  const OptionalTensor &grad_c_n, &weight_hr;
  const Tensor &c_0, &cells, &gates;
};

struct GruBackwardCall : BackwardCall {
  const Tensor& gates;
  bool reset_after;
};

struct RnnBackwardCall : BackwardCall {
  bool relu;
};

// Those that are not needed are empty.
struct LstmGradients : Gradients {
  Tensor c_0, bias;
};
struct GruGradients : Gradients {
  Tensor bias_ih, bias_hh;
};
struct RnnGradients : Gradients {
  Tensor bias;
};

std::vector<LstmResults> lstm_forward(const std::vector<LstmCall>& calls, LstmKeep keep);
std::vector<LstmGradients> lstm_backward(const std::vector<LstmBackwardCall>& calls);
std::vector<GruResults> gru_forward(const std::vector<GruCall>& calls, bool keep);
std::vector<GruGradients> gru_backward(const std::vector<GruBackwardCall>& calls);
std::vector<RnnResults> rnn_forward(const std::vector<RnnCall>& calls);
std::vector<RnnGradients> rnn_backward(const std::vector<RnnBackwardCall>& calls);

}  // namespace rnnfast

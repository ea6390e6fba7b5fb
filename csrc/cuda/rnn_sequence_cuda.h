// Contract of the CUDA plain RNN (tanh or relu) over a whole sequence, launched by sequence_cuda.h.
//
// Equation and letters: ../rnn.h. gates_x = input weight_ih^T + bias_ih + bias_hh.
#pragma once

#include <stdint.h>

namespace rnnfast {

// clang-format off: the fields are a table
struct RnnSequenceCuda {
  int64_t seq_len, batch, hidden_size;
  int32_t reverse, relu;

  // name                      shape        role
  const void* gates_x;       // [T, N, H]   input half of the pre-activation, both biases included
  int64_t gates_x_time, gates_x_row;
  const void* h_0;           // [N, H]
  const void* weight_hh;     // [H, H]

  void* output;              // [T, N, H]   h_t; may be gates_x, same strides
  int64_t output_time, output_row;
  void* h_n;                 // [N, H]      may not alias h_0
};

struct RnnSequenceBackwardCuda {
  int64_t seq_len, batch, hidden_size;
  int32_t reverse, relu;

  const void* output;        // [T, N, H]   forward's
  int64_t output_time, output_row;
  const void* weight_hh;     // [H, H]

  const void* grad_output;   // [T, N, H]   may be null (zero)
  int64_t grad_output_time, grad_output_row;
  const void* grad_h_n;      // [N, H]      may be null (zero)

  void* grad_gates;          // [T, N, H]   gradient of the pre-activation
  int64_t grad_gates_time, grad_gates_row;
  void* grad_h_0;            // [N, H]      may not alias what is read
};
// clang-format on

}  // namespace rnnfast

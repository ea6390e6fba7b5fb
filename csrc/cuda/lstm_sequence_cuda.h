// Contract of the CUDA LSTM over a whole sequence, launched by sequence_cuda.h.
//
// Equations, gate order, the letters T (seq_len), N (batch) and H (hidden_size), and `reverse`:
// ../lstm.h. gates_x = input weight_ih^T + bias_ih + bias_hh.
#pragma once

#include <stdint.h>

namespace rnnfast {

// clang-format off: the fields are a table
struct LstmSequenceCuda {
  int64_t seq_len, batch, hidden_size;
  int32_t reverse;

  // name                      shape        role
  const void* gates_x;       // [T, N, 4H]  input half of the pre-activations, both biases included
  int64_t gates_x_time, gates_x_row;
  const void* h_0;           // [N, H]
  const void* c_0;           // [N, H]
  const void* weight_hh;     // [4H, H]

  void* output;              // [T, N, H]   h_t; may not alias what is read
  int64_t output_time, output_row;
  void* h_n;                 // [N, H]      may not alias h_0
  void* c_n;                 // [N, H]      may not alias c_0

  void* gates;               // [T, N, 4H]  i f g o after activation, kept for backward; may be null
  int64_t gates_time, gates_row;  //        (inference) or gates_x, same strides
  void* cells;               // [T, N, H]   c_t, kept for backward; may be null (inference)
  int64_t cells_time, cells_row;
};

struct LstmSequenceBackwardCuda {
  int64_t seq_len, batch, hidden_size;
  int32_t reverse;

  const void* gates;         // [T, N, 4H]  forward's; only read
  int64_t gates_time, gates_row;
  const void* cells;         // [T, N, H]   forward's; only read
  int64_t cells_time, cells_row;
  const void* c_0;           // [N, H]
  const void* weight_hh;     // [4H, H]

  const void* grad_output;   // [T, N, H]   may be null (zero)
  int64_t grad_output_time, grad_output_row;
  const void* grad_h_n;      // [N, H]      may be null (zero)
  const void* grad_c_n;      // [N, H]      may be null (zero)

  void* grad_gates;          // [T, N, 4H]  gradient of the gates before activation
  int64_t grad_gates_time, grad_gates_row;
  void* grad_h_0;            // [N, H]      may not alias what is read
  void* grad_c_0;            // [N, H]      may not alias what is read
};
// clang-format on

}  // namespace rnnfast

// Contract of the CUDA GRU over a whole sequence, launched by sequence_cuda.h.
//
// Equations of both forms, gate order and letters: ../gru.h. gates_x = input weight_ih^T + bias_ih.
// The hidden bias is an argument of its own, not a part of gates_x, because the form with the reset
// after the product multiplies its third part by r.
//
// A step of the form with the reset before the product needs two barriers, since n's product takes
// r * h_{t-1} of every unit: it always goes step by step, whatever the plan, and its backward needs
// a workspace of at least N H elements.
#pragma once

#include <stdint.h>

namespace rnnfast {

// clang-format off: the fields are a table
struct GruSequenceCuda {
  int64_t seq_len, batch, hidden_size;
  int32_t reverse, reset_after;

  // name                      shape        role
  const void* gates_x;       // [T, N, 3H]  input half of the pre-activations, bias_ih included
  int64_t gates_x_time, gates_x_row;
  const void* h_0;           // [N, H]
  const void* weight_hh;     // [3H, H]
  const void* bias_hh;       // [3H]        may be null (zero)

  void* output;              // [T, N, H]   h_t; may not alias what is read
  int64_t output_time, output_row;
  void* h_n;                 // [N, H]      may not alias h_0

  void* gates;               // [T, N, 4H]  r z n after activation and the fourth part of ../gru.h,
  int64_t gates_time, gates_row;  //        kept for backward. At inference null with reset_after;
                             //             without it memory is needed, and gates_time may be 0
};

struct GruSequenceBackwardCuda {
  int64_t seq_len, batch, hidden_size;
  int32_t reverse, reset_after;

  const void* gates;         // [T, N, 4H]  forward's; only read
  int64_t gates_time, gates_row;
  const void* output;        // [T, N, H]   forward's
  int64_t output_time, output_row;
  const void* h_0;           // [N, H]
  const void* weight_hh;     // [3H, H]

  const void* grad_output;   // [T, N, H]   may be null (zero)
  int64_t grad_output_time, grad_output_row;
  const void* grad_h_n;      // [N, H]      may be null (zero)

  void* grad_gates_x;        // [T, N, 3H]  gradient of the gates before activation, with respect to
  int64_t grad_gates_x_time, grad_gates_x_row;  // the input half
  void* grad_gates_h;        // [T, N, 3H]  the same for the hidden half, where n's part is times r;
  int64_t grad_gates_h_time, grad_gates_h_row;  // reset_after alone: reset before they are the same
  void* grad_h_0;            // [N, H]      may not alias what is read
};
// clang-format on

}  // namespace rnnfast

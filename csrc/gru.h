// Contract of the GRU kernels: one layer, one direction, a whole sequence.
//
// Equations (Cho et al. 2014), in the two forms that are taught:
//
//   r = sigmoid(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
//   z = sigmoid(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
//   n = tanh(W_in x_t + b_in + r * (W_hn h_{t-1} + b_hn))      reset_after (torch.nn.GRU, cuDNN)
//   n = tanh(W_in x_t + b_in + W_hn (r * h_{t-1}) + b_hn)      reset before (the paper's)
//   h_t = (1 - z) * n + z * h_{t-1}
//
// Sizes, strides, packed rows, `reverse`, threading and accuracy: as in lstm.h.
#pragma once

#include "runtime.h"
#include "storage.h"

// clang-format off
struct GruForward {
  int64_t seq_len, batch, input_size, hidden_size;
  int32_t reverse, reset_after;
  Storage storage;           // of all tensors but those kept for backward

  // name                      shape        role
  const int64_t* batch_sizes; // [T]        rows at each time index, not increasing, at most N; may
                             //            be null (all N)
  const void* input;         // [T, N, I]   features contiguous
  int64_t input_time, input_row;
  const void* h_0;           // [N, H]      contiguous
  const void* weight_ih;     // [3H, I]     contiguous, gate order r z n
  const void* weight_hh;     // [3H, H]     contiguous
  const void* bias_ih;       // [3H]        may be null
  const void* bias_hh;       // [3H]        may be null

  const void* packed;        //             what gru_pack() of the same table made of a layer of
                             //             these sizes, to read in place of those; or null
  void* output;              // [T, N, H]   h_t
  int64_t output_time, output_row;
  void* h_n;                 // [N, H]      contiguous

  // Kept for backward (both null at inference); laid out as output is.
  // The fourth part is W_hn h_{t-1} + b_hn (reset_after) or r * h_{t-1} (reset before).
  void* gates;               // [T, N, 4H]  r z n after activation, then the fourth part
  void* states;              // [T, N, H]   h_t; null where storage is own: output is the same
};
// clang-format on

// clang-format off
struct GruBackward {
  int64_t seq_len, batch, input_size, hidden_size;
  int32_t reverse, reset_after;
  Storage storage;           // of all tensors but those that forward kept

  const int64_t* batch_sizes; // as in forward
  const void* input;
  int64_t input_time, input_row;
  const void* h_0;
  const void* weight_ih;
  const void* weight_hh;
  const void* output;        // [T, N, H]   forward's states, or its output where that is the same
  int64_t output_time, output_row;
  const void* gates;         // [T, N, 4H]  forward's; only read

  const void* grad_output;   // [T, N, H]   features contiguous; may be null (zero)
  int64_t grad_output_time, grad_output_row;
  const void* grad_h_n;      // [N, H]      may be null (zero)

  void* grad_input;          // [T, N, I]   features contiguous; may be null (not wanted)
  int64_t grad_input_time, grad_input_row;
  void* grad_h_0;            // [N, H]
  void* grad_weight_ih;      // [3H, I]     written where grad_weight_hh is
  void* grad_weight_hh;      // [3H, H]     may be null (weights not wanted)
  void* grad_bias_ih;        // [3H]        null, or both biases
  void* grad_bias_hh;        // [3H]
};
// clang-format on

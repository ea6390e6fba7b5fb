// Contract of the plain RNN kernels: one layer, one direction, a whole sequence.
//
// Equation (Elman 1990, as torch.nn.RNN):
//
//   h_t = activation(weight_ih x_t + bias_ih + weight_hh h_{t-1} + bias_hh)    tanh or relu
//
// Backward needs nothing but output: tanh' = 1 - h^2, relu' = 0 where h <= 0, else 1
// (so NaN passes).
// Sizes, strides, packed rows, `reverse`, threading and accuracy: as in lstm.h.
#pragma once

#include "runtime.h"
#include "storage.h"

// clang-format off
struct RnnForward {
  int64_t seq_len, batch, input_size, hidden_size;
  int32_t reverse, relu;
  Storage storage;           // of all tensors but those kept for backward

  // name                      shape        role
  const int64_t* batch_sizes; // [T]        rows at each time index, not increasing, at most N; may
                             //            be null (all N)
  const void* input;         // [T, N, I]   features contiguous
  int64_t input_time, input_row;
  const void* h_0;           // [N, H]      contiguous
  const void* weight_ih;     // [H, I]      contiguous
  const void* weight_hh;     // [H, H]      contiguous
  const void* bias_ih;       // [H]         may be null
  const void* bias_hh;       // [H]         may be null

  const void* packed;        //             what rnn_pack() of the same table made of a layer of
                             //             these sizes, to read in place of those; or null
  void* output;              // [T, N, H]   h_t
  int64_t output_time, output_row;
  void* h_n;                 // [N, H]      contiguous

  // Kept for backward (null at inference); laid out as output is.
  void* states;              // [T, N, H]   h_t; null where storage is own: output is the same
};
// clang-format on

// clang-format off
struct RnnBackward {
  int64_t seq_len, batch, input_size, hidden_size;
  int32_t reverse, relu;
  Storage storage;           // of all tensors but those that forward kept

  const int64_t* batch_sizes; // as in forward
  const void* input;
  int64_t input_time, input_row;
  const void* h_0;
  const void* weight_ih;
  const void* weight_hh;
  const void* output;        // [T, N, H]   forward's states, or its output where that is the same
  int64_t output_time, output_row;

  const void* grad_output;   // [T, N, H]   features contiguous; may be null (zero)
  int64_t grad_output_time, grad_output_row;
  const void* grad_h_n;      // [N, H]      may be null (zero)

  void* grad_input;          // [T, N, I]   features contiguous; may be null (not wanted)
  int64_t grad_input_time, grad_input_row;
  void* grad_h_0;            // [N, H]
  void* grad_weight_ih;      // [H, I]      written where grad_weight_hh is
  void* grad_weight_hh;      // [H, H]      may be null (weights not wanted)
  void* grad_bias;           // [H]         of bias_ih and of bias_hh alike; may be null
};
// clang-format on

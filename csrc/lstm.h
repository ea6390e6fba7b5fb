// Contract of the LSTM kernels: one layer, one direction, a whole sequence.
//
// Equations (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, as
// torch.nn.LSTM):
//
//   [i f g o]  = weight_ih x_t + bias_ih + weight_hh h_{t-1} + bias_hh        (before activation)
//   i = sigmoid(i)   f = sigmoid(f)   g = tanh(g)   o = sigmoid(o)
//   c_t = f * c_{t-1} + i * g
//   h_t = o * tanh(c_t)           or, with a projection (Sak et al. 2014), weight_hr (o *
//   tanh(c_t))
//
// Sizes: T seq_len, N batch, I input_size, H hidden_size. A sequence tensor has its features
// contiguous; time and row are reached by the strides given beside it, so time-major and
// batch-major layouts need no copy. All strides count elements. T, N, I may be 0; H is at least 1.
//
// Packed rows (torch's PackedSequence): with batch_sizes, rows [0, batch_sizes[t]) alone take part
// at time index t. A sequence tensor then is [sum of batch_sizes, features]: the rows of index 0,
// those of index 1, ..., each row reached by the row's stride; strides over time do not matter. A
// row's first step is the first in which it takes part, its final state that after its last. Rows
// that never do keep their initial state. No work is done for what is not there.
//
// `reverse` runs t from T-1 down to 0; "previous" below means previous in that order.
//
// Threading: through Runtime only. Accuracy: every product is summed over k in one fixed order, in
// blocks, whatever the batch, the blocking or the number of threads: a row's bits depend on
// nothing but that row, the weights and the ISA.
#pragma once

#include "runtime.h"
#include "storage.h"

// clang-format off
struct LstmForward {
  int64_t seq_len, batch, input_size, hidden_size;
  int64_t proj_size;         // P; 0 for none: h_t is not projected, and P below reads H
  int32_t reverse;
  Storage storage;           // of all tensors but those kept for backward

  // name                      shape        role
  const int64_t* batch_sizes; // [T]        rows at each time index, not increasing, at most N; may
                             //            be null (all N)
  const void* input;         // [T, N, I]   features contiguous
  int64_t input_time, input_row;
  const void* h_0;           // [N, P]      contiguous
  const void* c_0;           // [N, H]      contiguous
  const void* weight_ih;     // [4H, I]     contiguous, gate order i f g o
  const void* weight_hh;     // [4H, P]     contiguous
  const void* weight_hr;     // [P, H]      contiguous; null where there is no projection
  const void* bias_ih;       // [4H]        may be null
  const void* bias_hh;       // [4H]        may be null

  const void* packed;        //             what lstm_pack() of the same table made of a layer of
                             //             these sizes, to read in place of those; or null
  void* output;              // [T, N, P]   h_t
  int64_t output_time, output_row;
  void* h_n;                 // [N, P]      contiguous; h_0 where T is 0
  void* c_n;                 // [N, H]      contiguous; may not alias c_0

  // Kept for backward, all; at inference null, or cells alone where all of them are wanted. Laid
  // out as output is.
  void* gates;               // [T, N, 4H]  i f g o after activation
  void* cells;               // [T, N, H]   c_t
  void* states;              // [T, N, P]   h_t; null where storage is own: output is the same
};
// clang-format on

// clang-format off
struct LstmBackward {
  int64_t seq_len, batch, input_size, hidden_size;
  int64_t proj_size;         // P; 0 for none: h_t is not projected, and P below reads H
  int32_t reverse;
  Storage storage;           // of all tensors but those that forward kept, and the gradient of cells

  const int64_t* batch_sizes; // as in forward
  const void* input;
  int64_t input_time, input_row;
  const void* h_0;
  const void* c_0;
  const void* weight_ih;
  const void* weight_hh;
  const void* weight_hr;
  const void* output;        // [T, N, P]   forward's states, or its output where that is the same
  int64_t output_time, output_row;
  const void* gates;         // [T, N, 4H]  forward's; only read, so backward may run twice
  const void* cells;         // [T, N, H]

  const void* grad_output;   // [T, N, P]   features contiguous; may be null (zero)
  int64_t grad_output_time, grad_output_row;
  const void* grad_h_n;      // [N, P]      may be null (zero)
  const void* grad_c_n;      // [N, H]      may be null (zero)
  const void* grad_cells;    // [T, N, H]   features contiguous; may be null (zero)
  int64_t grad_cells_time, grad_cells_row;

  void* grad_input;          // [T, N, I]   features contiguous; may be null (not wanted)
  int64_t grad_input_time, grad_input_row;
  void* grad_h_0;            // [N, P]
  void* grad_c_0;            // [N, H]
  void* grad_weight_ih;      // [4H, I]     written where grad_weight_hh is
  void* grad_weight_hh;      // [4H, P]     may be null (weights not wanted)
  void* grad_weight_hr;      // [P, H]      written where grad_weight_hh is; null without projection
  void* grad_bias;           // [4H]        of bias_ih and of bias_hh alike; may be null
};
// clang-format on

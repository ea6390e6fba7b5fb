// Contract of the kernels with int8 weights: inference, one layer, one direction, a whole sequence.
//
// Equations: those of lstm.h, gru.h and rnn.h, where each of the two products of a step is one of
// whole numbers. Row r of a weight is scale[r] times whole numbers in [-127, 127]. A row of
// activations, x_t or h_{t-1}, is s times whole numbers in [-limit, limit]:
//
//   s = max |a| / limit      limit = min(32767, (2^31 - 1) / (127 * depth)), rounded down
//   q = a / s to the nearest whole number, ties to even
//   W a = (scale[r] * s) * (sum over k of weight[r, k] * q[k])
//
// so that the sum fits 32 bits and is exact: it depends neither on the order of k nor on the ISA.
// States, gates, biases and results are float32. A row whose largest |a| is below 2^-100 counts as
// zero. A row with an infinity or a NaN makes all gates of its row NaN.
//
// The int8 weights are stored in tiles, the same for each ISA: [ceil(H / 16), ceil(depth / 16) * 8,
// gates, 16, 2]: for 16 units, for two neighbouring k after another, all gates of the 16 units,
// the two k side by side. Zeros where there is no such unit or k.
//
// Sizes, strides, packed rows, `reverse` and threading: as in lstm.h. Accuracy: bits depend on
// nothing but the row, the weights and, through the activations, the ISA; of the cell QuantizedRelu
// not even on the ISA. The error against float32 weights is that of rounding the weights, at most
// scale[r] / 2 each; rounding the activations costs at most s / 2 each.
#pragma once

#include "runtime.h"

// Gates as the rows of the weights are: i f g o, r z n, or one.
enum QuantizedCell { QuantizedLstm, QuantizedGru, QuantizedTanh, QuantizedRelu };

// clang-format off
struct QuantizedForward {
  int64_t seq_len, batch, input_size, hidden_size;
  int32_t cell;              // a QuantizedCell
  int32_t reverse;
  int32_t reset_after;       // GRU's form, see gru.h

  // name                       shape        role
  const int64_t* batch_sizes; // [T]         rows at each time index, not increasing, at most N;
                              //             may be null (all N)
  const float* input;         // [T, N, I]   features contiguous
  int64_t input_time, input_row;
  const float* h_0;           // [N, H]      contiguous
  const float* c_0;           // [N, H]      contiguous; LSTM only, as is c_n
  const int8_t* weight_ih;    // [gates * H, I] in tiles
  const int8_t* weight_hh;    // [gates * H, H] in tiles
  const float* scale_ih;      // [gates * H]
  const float* scale_hh;      // [gates * H]
  const float* bias_ih;       // [gates * H] may be null
  const float* bias_hh;       // [gates * H] may be null

  float* output;              // [T, N, H]   h_t
  int64_t output_time, output_row;
  float* h_n;                 // [N, H]      contiguous; h_0 where T is 0
  float* c_n;                 // [N, H]      contiguous; may not alias c_0
};
// clang-format on

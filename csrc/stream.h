// Contract of the streaming kernels: one step of one layer at a time, with weights packed before.
//
// A sequence packs its weights once a call, which costs as much as some steps; a stream has one
// step a call, and packs once in its life. Equations are those of lstm.h, gru.h and rnn.h.
//
// Sizes: N batch, I input_size, H hidden_size, P proj_size or, without a projection, H, V
// num_embeddings. I may be 0, the others not. All tensors are contiguous.
//
// With an embedding, a step's input are ids, and what the layer needs of weight_ih is its product
// with every row of the embedding, computed once: a step reads one row of it in place of all of
// weight_ih.
//
// Memory: a step allocates nothing. All that a packed layer needs is allocated when it is packed,
// by the first of the two Runtimes; the second gives scratch memory.
// Threading: through Runtime only; one step at a time of one packed layer, which holds scratch.
// Accuracy: every sum in the order that it has in a sequence: a stream gives the bits of a sequence
// of at least two steps on the same ISA.
#pragma once

#include "runtime.h"

// clang-format off
enum StreamCell {
  kStreamLstm,
  kStreamGru,                // both forms of gru.h
  kStreamGruResetBefore,
  kStreamRnnTanh,
  kStreamRnnRelu,
};

// What is packed, with G gates: 4 of LSTM, 3 of GRU, 1 of RNN. Weights are not kept.
struct StreamLayer {
  enum StreamCell cell;
  int64_t batch, input_size, hidden_size;
  int64_t proj_size;         // 0 for none; LSTM only
  int64_t num_embeddings;    // 0 for none

  // name                      shape        role
  const void* weight_ih;     // [G * H, I]
  const void* weight_hh;     // [G * H, P]
  const void* bias_ih;       // [G * H]     may be null
  const void* bias_hh;       // [G * H]     may be null
  const void* weight_hr;     // [P, H]      null where there is no projection
  const void* embedding;     // [V, I]      null where there is none
};

struct StreamStep {
  const void* layer;         //             what stream_layer() of the same table returned
  const void* input;         // [N, I]      x_t; or [N] of int64_t, in [0, V), with an embedding
  void* h;                   // [N, P]      h_{t-1}, then h_t
  void* c;                   // [N, H]      c_{t-1}, then c_t; LSTM only
  void* output;              // [N, P]      h_t; may alias nothing
  int backwards;             //             which end the weights are read from: of large ones, those
                             //             that were read last are still in the cache; same results
};
// clang-format on

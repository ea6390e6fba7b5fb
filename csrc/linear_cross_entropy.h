// Contract of the linear cross entropy kernel: the output layer of a classifier and its loss, in
// one pass that never holds the logits of all rows.
//
//   logits_n = weight x_n + bias
//   loss     = scale * sum over n of log(sum over c of exp(logits_nc)) - logits_n[target_n]
//
// over the rows whose target is not ignore_index; scale is 1, or one over their number (`mean`).
// Its gradients are those of a loss whose own gradient is 1, so they are known as soon as a row's
// logits are, and a backward has but to multiply them by what the loss's gradient is:
//
//   d_n = scale * (softmax(logits_n) - onehot(target_n)), or 0 where the target is ignored
//   grad_input_n = weight^T d_n     grad_weight = sum of d_n x_n^T     grad_bias = sum of d_n
//
// Sizes: N rows, H features, C classes, at least 1. Rows are worked on in chunks so that at most
// 64 MiB of d are there at a time (but at least one vector of rows). The maximum of a row is
// subtracted before exp, and rows with a NaN, an infinity or nothing but -infinity have the loss
// that torch gives them: NaN.
//
// Threading: through Runtime only. Accuracy: every sum is taken in one fixed order, whatever the
// number of threads; a row's loss depends on that row, weight, bias and ISA alone. exp is that of
// cpu/activations.h. Loss and gradients are within twice torch's own error (in bfloat16: of what
// torch gives for rounded input and weight, the gradients within 2^-8 more).
#pragma once

#include "runtime.h"

// clang-format off
struct LinearCrossEntropy {
  int64_t rows, features, classes;
  int64_t ignore_index;
  int32_t mean;

  // name                 shape      role
  const void* input;     // [N, H]   features contiguous
  int64_t input_row;
  const void* weight;    // [C, H]   contiguous
  const void* bias;      // [C]      may be null
  const int64_t* target; // [N]      each in [0, C) or ignore_index

  void* loss;            // []       NaN for the mean of no rows
  void* grad_input;      // [N, H]   contiguous; may be null (not wanted), as may the next two
  void* grad_weight;     // [C, H]   contiguous
  void* grad_bias;       // [C]      contiguous
};
// clang-format on

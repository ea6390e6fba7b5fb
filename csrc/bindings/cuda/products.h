// The products over a whole sequence, by torch's own operators (cuBLAS), in torch's stable ABI.
//
// An operand is a tensor rounded to the precision of the call's products; what they give is float,
// or double where the tensors are. Whether float operands are multiplied as TF32 here is torch's
// own switch (torch.set_float32_matmul_precision), whatever the call's precision.
#pragma once

#include "bindings/cuda/cells.h"

namespace rnnfast {

Tensor operand(const Tensor& tensor, Precision precision);

// A sequence, [seq_len, batch, features] or [batch, seq_len, features], as [rows, features]. Copied
// only where its strides are not those of one.
Tensor matrix(const Tensor& sequence);

// Columns [start, start + count) of a matrix, or of another tensor's dimension; a view.
Tensor part(Tensor tensor, int64_t dimension, int64_t start, int64_t count);

// a b, of two matrices.
Tensor product(const Tensor& a, const Tensor& b);
// a^T b.
Tensor transposed_product(const Tensor& a, const Tensor& b);
// [features], summed over the rows.
Tensor sum_of_rows(const Tensor& matrix);

// bias_ih + bias_hh, or the one that there is.
OptionalTensor both_biases(const Layer& layer);
// input weight_ih^T + bias, a contiguous sequence laid out as the input.
Tensor input_projection(const Layer& layer, const OptionalTensor& bias, Precision precision);
// What input_projection's backward gives for the input: grad weight_ih, an operand, as a sequence.
Tensor input_gradient(const Layer& layer, const Tensor& grad, Precision precision);
// h_{t-1} of every step, [rows, hidden_size], an operand.
Tensor previous_states(const Layer& layer, const Tensor& output, bool reverse, Precision precision);

// The gradients that a call needs and that are products of the gates' gradient, the same for input
// and state, and that of the bias.
void set_products(const Layer& layer, const Tensor& grad_gates, const BackwardCall& call,
                  Precision precision, Gradients& gradients, Tensor& bias);

}  // namespace rnnfast

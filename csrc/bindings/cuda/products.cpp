#include "bindings/cuda/products.h"

#include <array>

namespace rnnfast {
namespace {

using torch::headeronly::ScalarType;

template <class... Arguments>
Tensor call(const char* op, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(arguments)> stack{torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

ScalarType operand_type(const Tensor& tensor, Precision precision) {
  switch (precision) {
    case Precision::bf16:
      return ScalarType::BFloat16;
    case Precision::fp16:
      return ScalarType::Half;
    default:
      return tensor.scalar_type();
  }
}

Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

Tensor sequence_like(const Tensor& input, const Tensor& matrix) {
  const int64_t shape[] = {input.size(0), input.size(1), matrix.size(1)};
  return torch::stable::reshape(matrix, {shape, 3});
}

// a + b, b broadcast; torch::stable has no sum of its own.
Tensor add(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1.0); }

}  // namespace

Tensor operand(const Tensor& tensor, Precision precision) {
  const ScalarType type = operand_type(tensor, precision);
  return type == tensor.scalar_type() ? tensor : torch::stable::to(tensor, type);
}

Tensor matrix(const Tensor& sequence) {
  const int64_t shape[] = {sequence.size(0) * sequence.size(1), sequence.size(2)};
  return torch::stable::reshape(sequence, {shape, 2});
}

Tensor part(Tensor tensor, int64_t dimension, int64_t start, int64_t count) {
  return torch::stable::narrow(tensor, dimension, start, count);
}

Tensor product(const Tensor& a, const Tensor& b) {
  const bool half = a.scalar_type() != ScalarType::Float && a.scalar_type() != ScalarType::Double;
  return half ? call("aten::mm", "dtype", a, b, ScalarType::Float) : call("aten::mm", "", a, b);
}

Tensor transposed_product(const Tensor& a, const Tensor& b) { return product(transposed(a), b); }

Tensor sum_of_rows(const Tensor& matrix) {
  const int64_t rows = 0;
  return torch::stable::sum(matrix, torch::headeronly::IntHeaderOnlyArrayRef(&rows, 1));
}

OptionalTensor both_biases(const Layer& layer) {
  if (!layer.bias_ih || !layer.bias_hh) return layer.bias_ih ? layer.bias_ih : layer.bias_hh;
  return add(*layer.bias_ih, *layer.bias_hh);
}

Tensor input_projection(const Layer& layer, const OptionalTensor& bias, Precision precision) {
  const Tensor x = operand(matrix(layer.input.tensor), precision);
  const Tensor weight = operand(layer.weight_ih, precision);
  if (x.scalar_type() == layer.input.tensor.scalar_type())
    return sequence_like(layer.input.tensor, call("aten::linear", "", x, weight, bias));
  const Tensor projected = product(x, transposed(weight));
  return sequence_like(layer.input.tensor, bias ? add(projected, *bias) : projected);
}

Tensor input_gradient(const Layer& layer, const Tensor& grad, Precision precision) {
  return sequence_like(layer.input.tensor, product(grad, operand(layer.weight_ih, precision)));
}

Tensor previous_states(const Layer& layer, const Tensor& output, bool reverse,
                       Precision precision) {
  const int64_t time = layer.batch_first ? 1 : 0, steps = layer.seq_len;
  Tensor states = torch::stable::new_empty(output, output.sizes(), operand_type(output, precision));
  if (steps > 0) {
    Tensor later = part(states, time, reverse ? 0 : 1, steps - 1);
    Tensor first = torch::stable::select(states, time, reverse ? steps - 1 : 0);
    const Tensor earlier = part(output, time, reverse ? 1 : 0, steps - 1);
    torch::stable::copy_(later, earlier);
    torch::stable::copy_(first, layer.h_0);
  }
  return matrix(states);
}

void set_products(const Layer& layer, const Tensor& grad_gates, const BackwardCall& call,
                  Precision precision, Gradients& gradients, Tensor& bias) {
  const Tensor grad = matrix(grad_gates), grad_operand = operand(grad, precision);
  if (call.need_input) gradients.input = input_gradient(layer, grad_operand, precision);
  if (call.need_weights) {
    gradients.weight_ih =
        transposed_product(grad_operand, operand(matrix(layer.input.tensor), precision));
    gradients.weight_hh = transposed_product(
        grad_operand, previous_states(layer, call.output, call.reverse, precision));
  }
  if (call.need_bias) bias = sum_of_rows(grad);
}

}  // namespace rnnfast

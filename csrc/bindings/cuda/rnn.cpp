// The plain RNN ops on CUDA tensors.
#include <string>
#include <tuple>

#include "bindings/cuda/launch.h"
#include "bindings/cuda/ops.h"
#include "bindings/cuda/products.h"
#include "bindings/rnn.h"
#include "cuda/rnn_sequence_cuda.h"

namespace rnnfast {
namespace {

constexpr int64_t kGates = 1;

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

RnnResults run_forward(const RnnCall& call) {
  const Layer layer = call.layer();
  const Precision precision = served_precision(layer, call.precision);
  Tensor output = input_projection(layer, both_biases(layer), precision);
  Tensor h_n = layer.empty({layer.batch, layer.hidden_size});

  RnnSequenceCuda args{};
  fill_sequence(layer, call.reverse, args);
  args.relu = call.relu;
  args.gates_x = args.output = output.mutable_data_ptr();
  args.gates_x_time = args.output_time = layer.time_stride(layer.hidden_size);
  args.gates_x_row = args.output_row = layer.row_stride(layer.hidden_size);
  args.h_0 = layer.h_0.const_data_ptr();
  args.h_n = h_n.mutable_data_ptr();
  launch_sequence(layer, kGates, false, precision, args);
  return {output, h_n};
}

Backward rnn_backward(OptionalTensor grad_output, OptionalTensor grad_h_n, Tensor input, Tensor h_0,
                      Tensor weight_ih, Tensor weight_hh, Tensor output, OptionalTensor batch_sizes,
                      String nonlinearity, bool batch_first, bool reverse, String precision_name,
                      bool need_input, bool need_weights, bool need_bias) {
  const Layer layer("rnnfast::rnn_backward", kGates, input, h_0, weight_ih, weight_hh, std::nullopt,
                    std::nullopt, std::nullopt, batch_sizes, batch_first);
  const Precision precision = served_precision(layer, precision_name);
  const int64_t hidden = layer.hidden_size;
  const Tensor states = layer.checked_sequence("output", output, hidden);
  const auto grad_states = layer.gradient("grad_output", grad_output, hidden);
  const OptionalTensor grad_h_last = layer.state_gradient("grad_h_n", grad_h_n);
  Tensor grad_gates = layer.empty_sequence(hidden), grad_h_0 = layer.empty({layer.batch, hidden});

  RnnSequenceBackwardCuda args{};
  fill_sequence(layer, reverse, args);
  fill_sequence_gradients(grad_states, grad_h_last, grad_h_0, args);
  args.relu = is_relu(layer.op, nonlinearity);
  args.output = states.const_data_ptr();
  args.output_time = args.grad_gates_time = layer.time_stride(hidden);
  args.output_row = args.grad_gates_row = layer.row_stride(hidden);
  args.grad_gates = grad_gates.mutable_data_ptr();
  launch_sequence(layer, kGates, true, precision, args);

  const Tensor none = layer.empty({0});
  const Tensor grad = matrix(grad_gates), grad_operand = operand(grad, precision);
  Backward gradients = {none, grad_h_0, none, none, need_bias ? sum_of_rows(grad) : none};
  if (need_input) std::get<0>(gradients) = input_gradient(layer, grad_operand, precision);
  if (need_weights) {
    std::get<2>(gradients) =
        transposed_product(grad_operand, operand(matrix(layer.input.tensor), precision));
    std::get<3>(gradients) =
        transposed_product(grad_operand, previous_states(layer, states, reverse, precision));
  }
  return gradients;
}

}  // namespace

void register_rnn_cuda(Registry& m) {
  RnnOps<run_forward>::add_to(m);
  m.impl("rnn_backward", TORCH_BOX(&rnn_backward));
}

}  // namespace rnnfast

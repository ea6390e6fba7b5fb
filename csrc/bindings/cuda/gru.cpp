// The GRU ops on CUDA tensors.
#include <string>
#include <tuple>

#include "bindings/cuda/launch.h"
#include "bindings/cuda/ops.h"
#include "bindings/cuda/products.h"
#include "bindings/gru.h"
#include "cuda/gru_sequence_cuda.h"

namespace rnnfast {
namespace {

constexpr int64_t kGates = 3;
constexpr int64_t kKeptGates = 4;

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

GruResults run_forward(const GruCall& call, bool keep) {
  const Layer layer = call.layer();
  const Precision precision = served_precision(layer, call.precision);
  const int64_t hidden = layer.hidden_size;
  const Tensor gates_x = input_projection(layer, layer.bias_ih, precision);
  Tensor output = layer.empty_sequence(hidden), h_n = layer.empty({layer.batch, hidden});
  // Without reset_after a step needs its gates even where they are not kept.
  const bool one_step = !keep && !call.reset_after;
  Tensor gates = keep       ? layer.empty_sequence(kKeptGates * hidden)
                 : one_step ? layer.empty({layer.batch, kKeptGates * hidden})
                            : output;

  GruSequenceCuda args{};
  fill_sequence(layer, call.reverse, args);
  args.reset_after = call.reset_after;
  args.gates_x = gates_x.const_data_ptr();
  args.gates_x_time = layer.time_stride(kGates * hidden);
  args.gates_x_row = layer.row_stride(kGates * hidden);
  args.h_0 = layer.h_0.const_data_ptr();
  args.bias_hh = pointer(layer.bias_hh);
  args.output = output.mutable_data_ptr();
  args.output_time = layer.time_stride(hidden);
  args.output_row = layer.row_stride(hidden);
  args.h_n = h_n.mutable_data_ptr();
  args.gates = pointer_if(keep || one_step, gates);
  args.gates_time = one_step ? 0 : layer.time_stride(kKeptGates * hidden);
  args.gates_row = one_step ? kKeptGates * hidden : layer.row_stride(kKeptGates * hidden);
  launch_sequence(layer, kGates, false, precision, args);
  return {output, h_n, gates};
}

// Gradient of weight_hh where the reset gate acts before the product: what n's third multiplies is
// r * h_{t-1}, which forward kept as the fourth part of its gates.
Tensor reset_before_weight_gradient(const Layer& layer, const Tensor& grad, const Tensor& states,
                                    const Tensor& gates, Precision precision) {
  const int64_t hidden = layer.hidden_size;
  Tensor grad_weight = layer.empty({kGates * hidden, hidden});
  Tensor of_r_and_z = part(grad_weight, 0, 0, 2 * hidden);
  Tensor of_n = part(grad_weight, 0, 2 * hidden, hidden);
  const Tensor reset_states = operand(part(matrix(gates), 1, 3 * hidden, hidden), precision);
  torch::stable::copy_(of_r_and_z, transposed_product(part(grad, 1, 0, 2 * hidden), states));
  torch::stable::copy_(of_n, transposed_product(part(grad, 1, 2 * hidden, hidden), reset_states));
  return grad_weight;
}

Backward gru_backward(OptionalTensor grad_output, OptionalTensor grad_h_n, Tensor input, Tensor h_0,
                      Tensor weight_ih, Tensor weight_hh, Tensor output, Tensor gates,
                      OptionalTensor batch_sizes, bool reset_after, bool batch_first, bool reverse,
                      String precision_name, bool need_input, bool need_weights, bool need_bias) {
  const Layer layer("rnnfast::gru_backward", kGates, input, h_0, weight_ih, weight_hh, std::nullopt,
                    std::nullopt, std::nullopt, batch_sizes, batch_first);
  const Precision precision = served_precision(layer, precision_name);
  const int64_t hidden = layer.hidden_size;
  const Tensor states = layer.checked_sequence("output", output, hidden);
  const Tensor kept_gates = layer.checked_sequence("gates", gates, kKeptGates * hidden);
  const auto grad_states = layer.gradient("grad_output", grad_output, hidden);
  const OptionalTensor grad_h_last = layer.state_gradient("grad_h_n", grad_h_n);
  Tensor grad_h_0 = layer.empty({layer.batch, hidden});
  Tensor grad_gates_x = layer.empty_sequence(kGates * hidden);
  // One and the same where the reset gate acts before the product.
  Tensor grad_gates_h = reset_after ? layer.empty_sequence(kGates * hidden) : grad_gates_x;

  GruSequenceBackwardCuda args{};
  fill_sequence(layer, reverse, args);
  fill_sequence_gradients(grad_states, grad_h_last, grad_h_0, args);
  args.reset_after = reset_after;
  args.gates = kept_gates.const_data_ptr();
  args.gates_time = layer.time_stride(kKeptGates * hidden);
  args.gates_row = layer.row_stride(kKeptGates * hidden);
  args.output = states.const_data_ptr();
  args.output_time = layer.time_stride(hidden);
  args.output_row = layer.row_stride(hidden);
  args.h_0 = layer.h_0.const_data_ptr();
  args.grad_gates_x = grad_gates_x.mutable_data_ptr();
  args.grad_gates_x_time = args.grad_gates_h_time = layer.time_stride(kGates * hidden);
  args.grad_gates_x_row = args.grad_gates_h_row = layer.row_stride(kGates * hidden);
  args.grad_gates_h = pointer_if(reset_after, grad_gates_h);
  const int64_t scratch = reset_after ? 0 : layer.batch * hidden * int64_t{sizeof(double)};
  launch_sequence(layer, kGates, true, precision, args, scratch);

  const Tensor none = layer.empty({0});
  const Tensor grad_x = matrix(grad_gates_x), grad_h = matrix(grad_gates_h);
  Backward gradients = {none, grad_h_0, none, none, none, none};
  auto& [grad_input, grad_state, grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh] =
      gradients;
  const Tensor grad_x_operand = operand(grad_x, precision);
  if (need_input) grad_input = input_gradient(layer, grad_x_operand, precision);
  if (need_weights) {
    grad_weight_ih =
        transposed_product(grad_x_operand, operand(matrix(layer.input.tensor), precision));
    const Tensor previous = previous_states(layer, states, reverse, precision);
    grad_weight_hh = reset_after ? transposed_product(operand(grad_h, precision), previous)
                                 : reset_before_weight_gradient(layer, grad_x_operand, previous,
                                                                kept_gates, precision);
  }
  if (need_bias) {
    grad_bias_ih = sum_of_rows(grad_x);
    grad_bias_hh = sum_of_rows(grad_h);
  }
  return gradients;
}

}  // namespace

void register_gru_cuda(Registry& m) {
  GruOps<run_forward>::add_to(m);
  m.impl("gru_backward", TORCH_BOX(&gru_backward));
}

}  // namespace rnnfast

// The GRU ops on CUDA tensors.
#include <string>
#include <tuple>

#include "bindings/cuda/cells.h"
#include "bindings/cuda/launch.h"
#include "bindings/cuda/ops.h"
#include "bindings/cuda/products.h"
#include "cuda/gru_sequence_cuda.h"

namespace rnnfast {
namespace {

constexpr int64_t kGates = 3;
constexpr int64_t kKeptGates = 4;

using Forward = Recurrence<GruSequenceCuda, GruResults>;
// What the kernel makes: the gradients of the gates' input halves, of their hidden halves, which
// are one and the same where the reset gate acts before the product, and of h_0.
using Backward = Recurrence<GruSequenceBackwardCuda, std::tuple<Tensor, Tensor, Tensor>>;

Forward prepare_forward(const GruCall& call, bool keep) {
  const Layer layer = call.layer();
  const Precision precision = served_precision(layer, call.precision);
  const int64_t hidden = layer.hidden_size;
  const Tensor gates_x = input_projection(layer, layer.bias_ih, precision);
  const Tensor output = layer.empty_sequence(hidden), h_n = layer.empty({layer.batch, hidden});
  // Without reset_after a step needs its gates even where they are not kept.
  const bool one_step = !keep && !call.reset_after;
  const Tensor gates = keep       ? layer.empty_sequence(kKeptGates * hidden)
                       : one_step ? layer.empty({layer.batch, kKeptGates * hidden})
                                  : output;

  Forward run{layer, precision, {output, h_n, gates, layer.empty_states(false)}, {}, {}};
  GruSequenceCuda& args = run.args;
  fill_sequence(layer, call.reverse, args);
  args.reset_after = call.reset_after;
  args.gates_x = run.reads(gates_x);
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
  return run;
}

Backward prepare_backward(const GruBackwardCall& call) {
  const Layer layer(call.op, kGates, call.input, call.h_0, call.weight_ih, call.weight_hh,
                    std::nullopt, std::nullopt, std::nullopt, call.batch_sizes, call.batch_first);
  const Precision precision = served_precision(layer, call.precision);
  const int64_t hidden = layer.hidden_size;
  const Tensor grad_h_0 = layer.empty({layer.batch, hidden});
  const Tensor grad_gates_x = layer.empty_sequence(kGates * hidden);
  const Tensor grad_gates_h =
      call.reset_after ? layer.empty_sequence(kGates * hidden) : grad_gates_x;

  Backward run{layer, precision, {grad_gates_x, grad_gates_h, grad_h_0}, {}, {}};
  GruSequenceBackwardCuda& args = run.args;
  fill_sequence(layer, call.reverse, args);
  fill_sequence_gradients(call.grad_output, call.grad_h_n, grad_h_0, run);
  args.reset_after = call.reset_after;
  args.gates = run.reads(layer.checked_sequence("gates", call.gates, kKeptGates * hidden));
  args.gates_time = layer.time_stride(kKeptGates * hidden);
  args.gates_row = layer.row_stride(kKeptGates * hidden);
  args.output = run.reads(layer.checked_sequence("output", call.output, hidden));
  args.output_time = layer.time_stride(hidden);
  args.output_row = layer.row_stride(hidden);
  args.h_0 = layer.h_0.const_data_ptr();
  args.grad_gates_x = grad_gates_x.mutable_data_ptr();
  args.grad_gates_x_time = args.grad_gates_h_time = layer.time_stride(kGates * hidden);
  args.grad_gates_x_row = args.grad_gates_h_row = layer.row_stride(kGates * hidden);
  args.grad_gates_h = pointer_if(call.reset_after, grad_gates_h);
  return run;
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

GruGradients gradients_of(const Backward& run, const GruBackwardCall& call) {
  const auto& [grad_gates_x, grad_gates_h, grad_h_0] = run.results;
  const Layer& layer = run.layer;
  const Tensor none = layer.empty({0});
  const Tensor grad_x = matrix(grad_gates_x), grad_h = matrix(grad_gates_h);
  const Tensor grad_operand = operand(grad_x, run.precision);
  GruGradients gradients{{none, grad_h_0, none, none}, none, none};
  if (call.need_input) gradients.input = input_gradient(layer, grad_operand, run.precision);
  if (call.need_weights) {
    gradients.weight_ih =
        transposed_product(grad_operand, operand(matrix(layer.input.tensor), run.precision));
    const Tensor previous = previous_states(layer, call.output, call.reverse, run.precision);
    gradients.weight_hh = call.reset_after
                              ? transposed_product(operand(grad_h, run.precision), previous)
                              : reset_before_weight_gradient(layer, grad_operand, previous,
                                                             call.gates, run.precision);
  }
  if (call.need_bias) {
    gradients.bias_ih = sum_of_rows(grad_x);
    gradients.bias_hh = sum_of_rows(grad_h);
  }
  return gradients;
}

GruResults one_forward(const GruCall& call, bool keep) { return gru_forward({call}, keep).front(); }

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> one_backward(
    OptionalTensor grad_output, OptionalTensor grad_h_n, Tensor input, Tensor h_0, Tensor weight_ih,
    Tensor weight_hh, Tensor output, Tensor gates, OptionalTensor batch_sizes, bool reset_after,
    bool batch_first, bool reverse, String precision, bool need_input, bool need_weights,
    bool need_bias) {
  const GruBackwardCall call{
      {"rnnfast::gru_backward", grad_output, grad_h_n, input, h_0, weight_ih, weight_hh, output,
       batch_sizes, batch_first, reverse, precision, need_input, need_weights, need_bias},
      gates,
      reset_after};
  const GruGradients g = gru_backward({call}).front();
  return {g.input, g.h_0, g.weight_ih, g.weight_hh, g.bias_ih, g.bias_hh};
}

}  // namespace

std::vector<GruResults> gru_forward(const std::vector<GruCall>& calls, bool keep) {
  return launched<Forward>(
      calls, kGates, false, [&](const GruCall& call) { return prepare_forward(call, keep); },
      [](const Forward& run, const GruCall&) { return run.results; });
}

std::vector<GruGradients> gru_backward(const std::vector<GruBackwardCall>& calls) {
  const GruBackwardCall& first = calls.front();
  // The form that resets before the product keeps a state's gradient there from step to step.
  const int64_t scratch =
      first.reset_after ? 0 : first.h_0.numel() * static_cast<int64_t>(sizeof(double));
  return launched<Backward>(calls, kGates, true, prepare_backward, gradients_of, scratch);
}

void register_gru_cuda(Registry& m) {
  GruOps<one_forward>::add_to(m);
  m.impl("gru_backward", TORCH_BOX(&one_backward));
}

}  // namespace rnnfast

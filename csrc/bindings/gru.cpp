// The GRU ops on CPU tensors.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "bindings/gru.h"
#include "bindings/host.h"
#include "bindings/packed_weights.h"

namespace rnnfast {
namespace {

constexpr int64_t kGates = 3;
constexpr int64_t kKeptGates = 4;

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

GruResults run_forward(const GruCall& call, bool keep) {
  const Layer layer = call.layer();
  Tensor output = layer.empty_sequence(layer.hidden_size);
  Tensor h_n = layer.empty({layer.batch, layer.hidden_size});
  Tensor gates = keep ? layer.empty_kept(kKeptGates * layer.hidden_size) : output;
  Tensor states = layer.empty_states(keep);

  GruForward args{};
  layer.fill(args);
  args.reverse = call.reverse;
  args.reset_after = call.reset_after;
  args.bias_ih = pointer(layer.bias_ih);
  args.bias_hh = pointer(layer.bias_hh);
  args.output = output.mutable_data_ptr();
  args.h_n = h_n.mutable_data_ptr();
  args.gates = pointer_if(keep, gates);
  args.states = pointer_if(states.numel() > 0, states);
  const CpuKernels& kernels = cpu_kernels(layer, call.precision);
  const PackedCell cell = call.reset_after ? PackedCell::gru : PackedCell::gru_reset_before;
  const auto packed = use_packed(call.op, call.packed, cell, 0, kernels, args);
  kernels.gru_forward(Host().runtime(), &args);
  return {output, h_n, gates, states};
}

Backward gru_backward(OptionalTensor grad_output, OptionalTensor grad_h_n, Tensor input, Tensor h_0,
                      Tensor weight_ih, Tensor weight_hh, Tensor output, Tensor gates,
                      OptionalTensor batch_sizes, bool reset_after, bool batch_first, bool reverse,
                      String precision, bool need_input, bool need_weights, bool need_bias) {
  const Layer layer("rnnfast::gru_backward", kGates, input, h_0, weight_ih, weight_hh, std::nullopt,
                    std::nullopt, std::nullopt, batch_sizes, batch_first);
  const int64_t hidden = layer.hidden_size;
  const Tensor states = layer.checked_kept("output", output, hidden);
  const Tensor kept_gates = layer.checked_kept("gates", gates, kKeptGates * hidden);
  const auto grad_states = layer.gradient("grad_output", grad_output, hidden);
  const OptionalTensor grad_h_last = layer.state_gradient("grad_h_n", grad_h_n);
  const Gradients gradients = layer.empty_gradients(kGates, need_input, need_weights);
  Tensor grad_bias_ih = layer.empty_if(need_bias, {kGates * hidden});
  Tensor grad_bias_hh = layer.empty_if(need_bias, {kGates * hidden});

  GruBackward args{};
  layer.fill(args);
  args.reverse = reverse;
  args.reset_after = reset_after;
  args.output = states.const_data_ptr();
  args.gates = kept_gates.const_data_ptr();
  layer.fill_gradients(args, grad_states, grad_h_last, gradients, need_input, need_weights);
  args.grad_bias_ih = pointer_if(need_bias, grad_bias_ih);
  args.grad_bias_hh = pointer_if(need_bias, grad_bias_hh);
  cpu_kernels(layer, precision).gru_backward(Host().runtime(), &args);
  return {gradients.input,     gradients.h_0, gradients.weight_ih,
          gradients.weight_hh, grad_bias_ih,  grad_bias_hh};
}

}  // namespace
}  // namespace rnnfast

STABLE_TORCH_LIBRARY_IMPL(rnnfast, CPU, m) {
  rnnfast::GruOps<rnnfast::run_forward>::add_to(m);
  m.impl("gru_backward", TORCH_BOX(&rnnfast::gru_backward));
}

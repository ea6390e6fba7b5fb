// The plain RNN ops on CPU tensors.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "bindings/host.h"
#include "bindings/packed_weights.h"
#include "bindings/rnn.h"

namespace rnnfast {
namespace {

constexpr int64_t kGates = 1;

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

RnnResults run_forward(const RnnCall& call, bool keep) {
  const Layer layer = call.layer();
  Tensor output = layer.empty_sequence(layer.hidden_size);
  Tensor h_n = layer.empty({layer.batch, layer.hidden_size});
  Tensor states = layer.empty_states(keep);

  RnnForward args{};
  layer.fill(args);
  args.reverse = call.reverse;
  args.relu = call.relu;
  args.bias_ih = pointer(layer.bias_ih);
  args.bias_hh = pointer(layer.bias_hh);
  args.output = output.mutable_data_ptr();
  args.h_n = h_n.mutable_data_ptr();
  args.states = pointer_if(states.numel() > 0, states);
  const CpuKernels& kernels = cpu_kernels(layer, call.precision);
  const auto packed = use_packed(call.op, call.packed, PackedCell::rnn, 0, kernels, args);
  kernels.rnn_forward(Host().runtime(), &args);
  return {output, h_n, states};
}

Backward rnn_backward(OptionalTensor grad_output, OptionalTensor grad_h_n, Tensor input, Tensor h_0,
                      Tensor weight_ih, Tensor weight_hh, Tensor output, OptionalTensor batch_sizes,
                      String nonlinearity, bool batch_first, bool reverse, String precision,
                      bool need_input, bool need_weights, bool need_bias) {
  const Layer layer("rnnfast::rnn_backward", kGates, input, h_0, weight_ih, weight_hh, std::nullopt,
                    std::nullopt, std::nullopt, batch_sizes, batch_first);
  const int64_t hidden = layer.hidden_size;
  const Tensor states = layer.checked_kept("output", output, hidden);
  const auto grad_states = layer.gradient("grad_output", grad_output, hidden);
  const OptionalTensor grad_h_last = layer.state_gradient("grad_h_n", grad_h_n);
  const Gradients gradients = layer.empty_gradients(kGates, need_input, need_weights);
  Tensor grad_bias = layer.empty_if(need_bias, {hidden});

  RnnBackward args{};
  layer.fill(args);
  args.reverse = reverse;
  args.relu = is_relu(layer.op, nonlinearity);
  args.output = states.const_data_ptr();
  layer.fill_gradients(args, grad_states, grad_h_last, gradients, need_input, need_weights);
  args.grad_bias = pointer_if(need_bias, grad_bias);
  cpu_kernels(layer, precision).rnn_backward(Host().runtime(), &args);
  return {gradients.input, gradients.h_0, gradients.weight_ih, gradients.weight_hh, grad_bias};
}

}  // namespace
}  // namespace rnnfast

STABLE_TORCH_LIBRARY_IMPL(rnnfast, CPU, m) {
  rnnfast::RnnOps<rnnfast::run_forward>::add_to(m);
  m.impl("rnn_backward", TORCH_BOX(&rnnfast::rnn_backward));
}

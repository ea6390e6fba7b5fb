// The plain RNN ops on CPU tensors.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "bindings/host.h"
#include "bindings/layer.h"
#include "bindings/nonlinearity.h"
#include "bindings/string.h"

namespace rnnfast {
namespace {

constexpr int64_t kGates = 1;

using Forward = std::tuple<Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Forward rnn(Tensor input, Tensor h_0, Tensor weight_ih, Tensor weight_hh, OptionalTensor bias_ih,
            OptionalTensor bias_hh, OptionalTensor batch_sizes, String nonlinearity,
            bool batch_first, bool reverse, String precision) {
  const Layer layer("rnnfast::rnn", kGates, input, h_0, weight_ih, weight_hh, bias_ih, bias_hh,
                    std::nullopt, batch_sizes, batch_first);
  Tensor output = layer.empty_sequence(layer.hidden_size);
  Tensor h_n = layer.empty({layer.batch, layer.hidden_size});

  RnnForward args{};
  layer.fill(args);
  args.reverse = reverse;
  args.relu = is_relu(layer.op, nonlinearity);
  args.bias_ih = pointer(layer.bias_ih);
  args.bias_hh = pointer(layer.bias_hh);
  args.output = output.mutable_data_ptr();
  args.h_n = h_n.mutable_data_ptr();
  cpu_kernels(layer, precision).rnn_forward(Host().runtime(), &args);
  return {output, h_n};
}

Backward rnn_backward(OptionalTensor grad_output, OptionalTensor grad_h_n, Tensor input, Tensor h_0,
                      Tensor weight_ih, Tensor weight_hh, Tensor output, OptionalTensor batch_sizes,
                      String nonlinearity, bool batch_first, bool reverse, String precision,
                      bool need_input, bool need_weights, bool need_bias) {
  const Layer layer("rnnfast::rnn_backward", kGates, input, h_0, weight_ih, weight_hh, std::nullopt,
                    std::nullopt, std::nullopt, batch_sizes, batch_first);
  const int64_t hidden = layer.hidden_size;
  const Tensor states = layer.checked_sequence("output", output, hidden);
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
  // Forward keeps nothing but its output for backward, so one function serves both ops.
  m.impl("rnn", TORCH_BOX(&rnnfast::rnn));
  m.impl("rnn_inference", TORCH_BOX(&rnnfast::rnn));
  m.impl("rnn_backward", TORCH_BOX(&rnnfast::rnn_backward));
}

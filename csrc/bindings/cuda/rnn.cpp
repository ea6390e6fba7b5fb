// The plain RNN ops on CUDA tensors.
#include <string>
#include <tuple>

#include "bindings/cuda/cells.h"
#include "bindings/cuda/launch.h"
#include "bindings/cuda/ops.h"
#include "bindings/cuda/products.h"
#include "cuda/rnn_sequence_cuda.h"

namespace rnnfast {
namespace {

constexpr int64_t kGates = 1;

using Forward = Recurrence<RnnSequenceCuda, RnnResults>;
// What the kernel makes: the gradients of the gate and of h_0.
using Backward = Recurrence<RnnSequenceBackwardCuda, std::tuple<Tensor, Tensor>>;

Forward prepare_forward(const RnnCall& call) {
  const Layer layer = call.layer();
  const Precision precision = served_precision(layer, call.precision);
  const Tensor output = input_projection(layer, both_biases(layer), precision);
  const Tensor h_n = layer.empty({layer.batch, layer.hidden_size});

  Forward run{layer, precision, {output, h_n, layer.empty_states(false)}, {}, {}};
  RnnSequenceCuda& args = run.args;
  fill_sequence(layer, call.reverse, args);
  args.relu = call.relu;
  args.gates_x = args.output = output.mutable_data_ptr();
  args.gates_x_time = args.output_time = layer.time_stride(layer.hidden_size);
  args.gates_x_row = args.output_row = layer.row_stride(layer.hidden_size);
  args.h_0 = layer.h_0.const_data_ptr();
  args.h_n = h_n.mutable_data_ptr();
  return run;
}

Backward prepare_backward(const RnnBackwardCall& call) {
  const Layer layer(call.op, kGates, call.input, call.h_0, call.weight_ih, call.weight_hh,
                    std::nullopt, std::nullopt, std::nullopt, call.batch_sizes, call.batch_first);
  const Precision precision = served_precision(layer, call.precision);
  const int64_t hidden = layer.hidden_size;
  const Tensor grad_gates = layer.empty_sequence(hidden);
  const Tensor grad_h_0 = layer.empty({layer.batch, hidden});

  Backward run{layer, precision, {grad_gates, grad_h_0}, {}, {}};
  RnnSequenceBackwardCuda& args = run.args;
  fill_sequence(layer, call.reverse, args);
  fill_sequence_gradients(call.grad_output, call.grad_h_n, grad_h_0, run);
  args.relu = call.relu;
  args.output = run.reads(layer.checked_sequence("output", call.output, hidden));
  args.output_time = args.grad_gates_time = layer.time_stride(hidden);
  args.output_row = args.grad_gates_row = layer.row_stride(hidden);
  args.grad_gates = grad_gates.mutable_data_ptr();
  return run;
}

RnnGradients gradients_of(const Backward& run, const RnnBackwardCall& call) {
  const auto& [grad_gates, grad_h_0] = run.results;
  const Layer& layer = run.layer;
  const Tensor none = layer.empty({0});
  RnnGradients gradients{{none, grad_h_0, none, none}, none};
  set_products(layer, grad_gates, call, run.precision, gradients, gradients.bias);
  return gradients;
}

RnnResults one_forward(const RnnCall& call, bool) { return rnn_forward({call}).front(); }

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> one_backward(
    OptionalTensor grad_output, OptionalTensor grad_h_n, Tensor input, Tensor h_0, Tensor weight_ih,
    Tensor weight_hh, Tensor output, OptionalTensor batch_sizes, String nonlinearity,
    bool batch_first, bool reverse, String precision, bool need_input, bool need_weights,
    bool need_bias) {
  const char* op = "rnnfast::rnn_backward";
  const RnnBackwardCall call{
      {op, grad_output, grad_h_n, input, h_0, weight_ih, weight_hh, output, batch_sizes,
       batch_first, reverse, precision, need_input, need_weights, need_bias},
      is_relu(op, nonlinearity)};
  const RnnGradients g = rnn_backward({call}).front();
  return {g.input, g.h_0, g.weight_ih, g.weight_hh, g.bias};
}

}  // namespace

std::vector<RnnResults> rnn_forward(const std::vector<RnnCall>& calls) {
  return launched<Forward>(calls, kGates, false, prepare_forward,
                           [](const Forward& run, const RnnCall&) { return run.results; });
}

std::vector<RnnGradients> rnn_backward(const std::vector<RnnBackwardCall>& calls) {
  return launched<Backward>(calls, kGates, true, prepare_backward, gradients_of);
}

void register_rnn_cuda(Registry& m) {
  RnnOps<one_forward>::add_to(m);
  m.impl("rnn_backward", TORCH_BOX(&one_backward));
}

}  // namespace rnnfast

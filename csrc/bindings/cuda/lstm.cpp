// The LSTM ops on CUDA tensors.
#include <string>
#include <tuple>

#include "bindings/cuda/cells.h"
#include "bindings/cuda/launch.h"
#include "bindings/cuda/ops.h"
#include "bindings/cuda/products.h"
#include "cuda/lstm_sequence_cuda.h"

namespace rnnfast {
namespace {

constexpr int64_t kGates = 4;

using Forward = Recurrence<LstmSequenceCuda, LstmResults>;
// What the kernel makes: the gradient of the gates, then those of the initial states.
using Backward = Recurrence<LstmSequenceBackwardCuda, std::tuple<Tensor, Tensor, Tensor>>;

Forward prepare_forward(const LstmCall& call, LstmKeep keep) {
  const Layer layer = call.layer();
  const Precision precision = served_precision(layer, call.precision);
  const int64_t hidden = layer.hidden_size;
  const Tensor c_first = layer.checked("c_0", call.c_0, {layer.batch, hidden});
  const Tensor gates = input_projection(layer, both_biases(layer), precision);
  const Tensor output = layer.empty_sequence(hidden);
  const Tensor h_n = layer.empty({layer.batch, hidden}), c_n = layer.empty({layer.batch, hidden});
  const Tensor cells = keep != LstmKeep::nothing ? layer.empty_sequence(hidden) : output;

  Forward run{
      layer, precision, {output, h_n, c_n, cells, gates, layer.empty_states(false)}, {}, {}};
  LstmSequenceCuda& args = run.args;
  fill_sequence(layer, call.reverse, args);
  args.gates_x = gates.const_data_ptr();
  args.gates_x_time = args.gates_time = layer.time_stride(kGates * hidden);
  args.gates_x_row = args.gates_row = layer.row_stride(kGates * hidden);
  args.h_0 = layer.h_0.const_data_ptr();
  args.c_0 = run.reads(c_first);
  args.output = output.mutable_data_ptr();
  args.output_time = args.cells_time = layer.time_stride(hidden);
  args.output_row = args.cells_row = layer.row_stride(hidden);
  args.h_n = h_n.mutable_data_ptr();
  args.c_n = c_n.mutable_data_ptr();
  args.gates = pointer_if(keep == LstmKeep::all, gates);
  args.cells = pointer_if(keep != LstmKeep::nothing, cells);
  return run;
}

Backward prepare_backward(const LstmBackwardCall& call) {
  const Layer layer(call.op, kGates, call.input, call.h_0, call.weight_ih, call.weight_hh,
                    std::nullopt, std::nullopt, call.weight_hr, call.batch_sizes, call.batch_first);
  const Precision precision = served_precision(layer, call.precision);
  const int64_t batch = layer.batch, hidden = layer.hidden_size;
  const Tensor grad_gates = layer.empty_sequence(kGates * hidden);
  const Tensor grad_h_0 = layer.empty({batch, hidden}), grad_c_0 = layer.empty({batch, hidden});
  const OptionalTensor grad_c_last =
      call.grad_c_n ? OptionalTensor(layer.checked("grad_c_n", *call.grad_c_n, {batch, hidden}))
                    : std::nullopt;

  layer.checked_sequence("output", call.output, hidden);
  Backward run{layer, precision, {grad_gates, grad_h_0, grad_c_0}, {}, {}};
  LstmSequenceBackwardCuda& args = run.args;
  fill_sequence(layer, call.reverse, args);
  fill_sequence_gradients(call.grad_output, call.grad_h_n, grad_h_0, run);
  args.gates = run.reads(layer.checked_sequence("gates", call.gates, kGates * hidden));
  args.gates_time = args.grad_gates_time = layer.time_stride(kGates * hidden);
  args.gates_row = args.grad_gates_row = layer.row_stride(kGates * hidden);
  args.cells = run.reads(layer.checked_sequence("cells", call.cells, hidden));
  args.cells_time = layer.time_stride(hidden);
  args.cells_row = layer.row_stride(hidden);
  args.c_0 = run.reads(layer.checked("c_0", call.c_0, {batch, hidden}));
  args.grad_c_n = run.reads(grad_c_last);
  args.grad_gates = grad_gates.mutable_data_ptr();
  args.grad_c_0 = grad_c_0.mutable_data_ptr();
  return run;
}

LstmGradients gradients_of(const Backward& run, const LstmBackwardCall& call) {
  const auto& [grad_gates, grad_h_0, grad_c_0] = run.results;
  const Layer& layer = run.layer;
  const Tensor none = layer.empty({0});
  LstmGradients gradients{{none, grad_h_0, none, none}, grad_c_0, none};
  set_products(layer, grad_gates, call, run.precision, gradients, gradients.bias);
  return gradients;
}

LstmResults one_forward(const LstmCall& call, LstmKeep keep) {
  return lstm_forward({call}, keep).front();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> one_backward(
    OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n,
    OptionalTensor grad_cells, Tensor input, Tensor h_0, Tensor c_0, Tensor weight_ih,
    Tensor weight_hh, OptionalTensor weight_hr, Tensor output, Tensor cells, Tensor gates,
    OptionalTensor batch_sizes, bool batch_first, bool reverse, String precision, bool need_input,
    bool need_weights, bool need_bias) {
  const LstmBackwardCall call{
      {"rnnfast::lstm_backward", grad_output, grad_h_n, input, h_0, weight_ih, weight_hh, output,
       batch_sizes, batch_first, reverse, precision, need_input, need_weights, need_bias},
      grad_c_n,
      weight_hr,
      c_0,
      cells,
      gates};
  if (grad_cells) fail(call.op, ": grad_cells must be None on CUDA, but was given");
  const LstmGradients g = lstm_backward({call}).front();
  return {
      g.input, g.h_0, g.c_0, g.weight_ih, g.weight_hh, g.bias, torch::stable::new_empty(h_0, {0})};
}

}  // namespace

std::vector<LstmResults> lstm_forward(const std::vector<LstmCall>& calls, LstmKeep keep) {
  return launched<Forward>(
      calls, kGates, false, [&](const LstmCall& call) { return prepare_forward(call, keep); },
      [](const Forward& run, const LstmCall&) { return run.results; });
}

std::vector<LstmGradients> lstm_backward(const std::vector<LstmBackwardCall>& calls) {
  return launched<Backward>(calls, kGates, true, prepare_backward, gradients_of);
}

void register_lstm_cuda(Registry& m) {
  LstmOps<one_forward>::add_to(m);
  m.impl("lstm_backward", TORCH_BOX(&one_backward));
}

}  // namespace rnnfast

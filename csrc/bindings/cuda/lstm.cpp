// The LSTM ops on CUDA tensors.
#include <string>
#include <tuple>

#include "bindings/cuda/launch.h"
#include "bindings/cuda/ops.h"
#include "bindings/cuda/products.h"
#include "bindings/lstm.h"
#include "cuda/lstm_sequence_cuda.h"

namespace rnnfast {
namespace {

constexpr int64_t kGates = 4;

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

LstmResults run_forward(const LstmCall& call, LstmKeep keep) {
  const Layer layer = call.layer();
  const Precision precision = served_precision(layer, call.precision);
  const int64_t hidden = layer.hidden_size;
  const Tensor c_first = layer.checked("c_0", call.c_0, {layer.batch, hidden});
  Tensor gates = input_projection(layer, both_biases(layer), precision);
  Tensor output = layer.empty_sequence(hidden);
  Tensor h_n = layer.empty({layer.batch, hidden}), c_n = layer.empty({layer.batch, hidden});
  Tensor cells = keep != LstmKeep::nothing ? layer.empty_sequence(hidden) : output;

  LstmSequenceCuda args{};
  fill_sequence(layer, call.reverse, args);
  args.gates_x = gates.const_data_ptr();
  args.gates_x_time = args.gates_time = layer.time_stride(kGates * hidden);
  args.gates_x_row = args.gates_row = layer.row_stride(kGates * hidden);
  args.h_0 = layer.h_0.const_data_ptr();
  args.c_0 = c_first.const_data_ptr();
  args.output = output.mutable_data_ptr();
  args.output_time = args.cells_time = layer.time_stride(hidden);
  args.output_row = args.cells_row = layer.row_stride(hidden);
  args.h_n = h_n.mutable_data_ptr();
  args.c_n = c_n.mutable_data_ptr();
  args.gates = pointer_if(keep == LstmKeep::all, gates);
  args.cells = pointer_if(keep != LstmKeep::nothing, cells);
  launch_sequence(layer, kGates, false, precision, args);
  return {output, h_n, c_n, cells, gates};
}

Backward lstm_backward(OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n,
                       OptionalTensor grad_cells, Tensor input, Tensor h_0, Tensor c_0,
                       Tensor weight_ih, Tensor weight_hh, OptionalTensor weight_hr, Tensor output,
                       Tensor cells, Tensor gates, OptionalTensor batch_sizes, bool batch_first,
                       bool reverse, String precision_name, bool need_input, bool need_weights,
                       bool need_bias) {
  const Layer layer("rnnfast::lstm_backward", kGates, input, h_0, weight_ih, weight_hh,
                    std::nullopt, std::nullopt, weight_hr, batch_sizes, batch_first);
  const Precision precision = served_precision(layer, precision_name);
  if (grad_cells) fail(layer.op, ": grad_cells must be None on CUDA, but was given");
  const int64_t batch = layer.batch, hidden = layer.hidden_size;
  const Tensor c_first = layer.checked("c_0", c_0, {batch, hidden});
  const Tensor states = layer.checked_sequence("output", output, hidden);
  const Tensor kept_gates = layer.checked_sequence("gates", gates, kGates * hidden);
  const Tensor kept_cells = layer.checked_sequence("cells", cells, hidden);
  const auto grad_states = layer.gradient("grad_output", grad_output, hidden);
  const OptionalTensor grad_h_last = layer.state_gradient("grad_h_n", grad_h_n);
  const OptionalTensor grad_c_last =
      grad_c_n ? OptionalTensor(layer.checked("grad_c_n", *grad_c_n, {batch, hidden}))
               : std::nullopt;
  Tensor grad_gates = layer.empty_sequence(kGates * hidden);
  Tensor grad_h_0 = layer.empty({batch, hidden}), grad_c_0 = layer.empty({batch, hidden});

  LstmSequenceBackwardCuda args{};
  fill_sequence(layer, reverse, args);
  fill_sequence_gradients(grad_states, grad_h_last, grad_h_0, args);
  args.gates = kept_gates.const_data_ptr();
  args.gates_time = args.grad_gates_time = layer.time_stride(kGates * hidden);
  args.gates_row = args.grad_gates_row = layer.row_stride(kGates * hidden);
  args.cells = kept_cells.const_data_ptr();
  args.cells_time = layer.time_stride(hidden);
  args.cells_row = layer.row_stride(hidden);
  args.c_0 = c_first.const_data_ptr();
  args.grad_c_n = pointer(grad_c_last);
  args.grad_gates = grad_gates.mutable_data_ptr();
  args.grad_c_0 = grad_c_0.mutable_data_ptr();
  launch_sequence(layer, kGates, true, precision, args);

  Gradients gradients = layer.empty_gradients(kGates, false, false);
  const Tensor grad = matrix(grad_gates), grad_operand = operand(grad, precision);
  if (need_input) gradients.input = input_gradient(layer, grad_operand, precision);
  if (need_weights) {
    gradients.weight_ih =
        transposed_product(grad_operand, operand(matrix(layer.input.tensor), precision));
    gradients.weight_hh =
        transposed_product(grad_operand, previous_states(layer, states, reverse, precision));
  }
  const Tensor none = layer.empty({0});
  return {gradients.input,
          grad_h_0,
          grad_c_0,
          gradients.weight_ih,
          gradients.weight_hh,
          need_bias ? sum_of_rows(grad) : none,
          none};
}

}  // namespace

void register_lstm_cuda(Registry& m) {
  LstmOps<run_forward>::add_to(m);
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
}

}  // namespace rnnfast

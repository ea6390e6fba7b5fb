// The LSTM ops on CPU tensors.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "bindings/host.h"
#include "bindings/lstm.h"
#include "bindings/packed_weights.h"

namespace rnnfast {
namespace {

constexpr int64_t kGates = 4;

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

LstmResults run_forward(const LstmCall& call, LstmKeep keep) {
  const Layer layer = call.layer();
  const int64_t hidden = layer.hidden_size, size = layer.state_size;
  const Tensor c_first = layer.checked("c_0", call.c_0, {layer.batch, hidden});
  Tensor output = layer.empty_sequence(size);
  Tensor h_n = layer.empty({layer.batch, size}), c_n = layer.empty({layer.batch, hidden});
  Tensor gates = keep == LstmKeep::all ? layer.empty_kept(kGates * hidden) : output;
  Tensor cells = keep != LstmKeep::nothing ? layer.empty_kept(hidden) : output;
  Tensor states = layer.empty_states(keep == LstmKeep::all);

  LstmForward args{};
  layer.fill(args);
  args.reverse = call.reverse;
  args.proj_size = layer.weight_hr ? size : 0;
  args.weight_hr = pointer(layer.weight_hr);
  args.c_0 = c_first.const_data_ptr();
  args.bias_ih = pointer(layer.bias_ih);
  args.bias_hh = pointer(layer.bias_hh);
  args.output = output.mutable_data_ptr();
  args.h_n = h_n.mutable_data_ptr();
  args.c_n = c_n.mutable_data_ptr();
  args.gates = pointer_if(keep == LstmKeep::all, gates);
  args.cells = pointer_if(keep != LstmKeep::nothing, cells);
  args.states = pointer_if(states.numel() > 0, states);
  const CpuKernels& kernels = cpu_kernels(layer, call.precision);
  const auto packed =
      use_packed(call.op, call.packed, PackedCell::lstm, args.proj_size, kernels, args);
  kernels.lstm_forward(Host().runtime(), &args);
  return {output, h_n, c_n, cells, gates, states};
}

Backward lstm_backward(OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n,
                       OptionalTensor grad_cells, Tensor input, Tensor h_0, Tensor c_0,
                       Tensor weight_ih, Tensor weight_hh, OptionalTensor weight_hr, Tensor output,
                       Tensor cells, Tensor gates, OptionalTensor batch_sizes, bool batch_first,
                       bool reverse, String precision, bool need_input, bool need_weights,
                       bool need_bias) {
  const Layer layer("rnnfast::lstm_backward", kGates, input, h_0, weight_ih, weight_hh,
                    std::nullopt, std::nullopt, weight_hr, batch_sizes, batch_first);
  const int64_t batch = layer.batch, hidden = layer.hidden_size, size = layer.state_size;
  const Tensor c_first = layer.checked("c_0", c_0, {batch, hidden});
  const Tensor states = layer.checked_kept("output", output, size);
  const Tensor kept_gates = layer.checked_kept("gates", gates, kGates * hidden);
  const Tensor kept_cells = layer.checked_kept("cells", cells, hidden);
  const auto grad_states = layer.gradient("grad_output", grad_output, size);
  const auto grad_all_cells = layer.kept_gradient("grad_cells", grad_cells, hidden);
  const OptionalTensor grad_h_last = layer.state_gradient("grad_h_n", grad_h_n);
  const OptionalTensor grad_c_last =
      grad_c_n ? OptionalTensor(layer.checked("grad_c_n", *grad_c_n, {batch, hidden}))
               : std::nullopt;
  const Gradients gradients = layer.empty_gradients(kGates, need_input, need_weights);
  Tensor grad_c_0 = layer.empty({batch, hidden});
  Tensor grad_bias = layer.empty_if(need_bias, {kGates * hidden});
  const bool need_projection = need_weights && layer.weight_hr;
  Tensor grad_weight_hr = layer.empty_if(need_projection, {size, hidden});

  LstmBackward args{};
  layer.fill(args);
  args.reverse = reverse;
  args.proj_size = layer.weight_hr ? size : 0;
  args.weight_hr = pointer(layer.weight_hr);
  args.c_0 = c_first.const_data_ptr();
  args.output = states.const_data_ptr();
  args.gates = kept_gates.const_data_ptr();
  args.cells = kept_cells.const_data_ptr();
  layer.fill_gradients(args, grad_states, grad_h_last, gradients, need_input, need_weights);
  args.grad_c_n = pointer(grad_c_last);
  if (grad_all_cells) {
    args.grad_cells = grad_all_cells->tensor.const_data_ptr();
    args.grad_cells_time = layer.time_of(*grad_all_cells);
    args.grad_cells_row = grad_all_cells->row;
  }
  args.grad_c_0 = grad_c_0.mutable_data_ptr();
  args.grad_bias = pointer_if(need_bias, grad_bias);
  args.grad_weight_hr = pointer_if(need_projection, grad_weight_hr);
  cpu_kernels(layer, precision).lstm_backward(Host().runtime(), &args);
  return {gradients.input,     gradients.h_0, grad_c_0,      gradients.weight_ih,
          gradients.weight_hh, grad_bias,     grad_weight_hr};
}

}  // namespace
}  // namespace rnnfast

STABLE_TORCH_LIBRARY_IMPL(rnnfast, CPU, m) {
  rnnfast::LstmOps<rnnfast::run_forward>::add_to(m);
  m.impl("lstm_backward", TORCH_BOX(&rnnfast::lstm_backward));
}

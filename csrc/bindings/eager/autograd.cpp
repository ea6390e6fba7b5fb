// The derivative of the recurrent ops as a node of torch's autograd in C++.
//
// It replaces the one that rnnfast/ops.py has in Python, for the same rule at a third of the cost:
// the forward op keeps what its backward op reads. Derivatives of derivatives, and backward under a
// transform of torch.func, are asked of Python, which differentiates the op's twin in plain torch.
#include "bindings/eager/autograd.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/library.h>

#include <string>
#include <vector>

namespace rnnfast {
namespace {

using c10::IValue;
using c10::OperatorHandle;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;

// Of one cell: its ops, and where their arguments stand. The forward op takes input, states, both
// weights, both biases, what else there is, then options; it gives output, final states, then what
// it keeps, last the states of all steps or, where output is that, an empty tensor. The backward op
// takes gradients of the results, inputs but the biases, those states, what else is kept, then the
// same options and what is needed.
struct Cell {
  std::string name;
  size_t num_inputs, num_states, num_results;
  OperatorHandle forward, backward;
  std::vector<std::string> options;           // names, in the order of the forward op
  std::vector<std::string> backward_options;  // names, in the order of the backward op

  Cell(const char* name_, size_t num_states_, size_t num_results_)
      : name(name_),
        num_states(num_states_),
        num_results(num_results_),
        forward(op("rnnfast::" + name)),
        backward(op("rnnfast::" + name + "_backward")) {
    num_inputs = 0;
    for (const auto& argument : forward.schema().arguments())
      if (argument.kwarg_only())
        options.push_back(argument.name());
      else
        ++num_inputs;
    for (const auto& argument : backward.schema().arguments())
      if (argument.kwarg_only()) backward_options.push_back(argument.name());
  }

  size_t bias() const { return num_states + 3; }  // of bias_ih; bias_hh follows

 private:
  static OperatorHandle op(const std::string& name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
  }
};

const Cell& cell_at(int64_t index) {
  static const Cell cells[] = {{"lstm", 2, 4}, {"gru", 1, 2}, {"rnn", 1, 2}};
  return cells[index];
}

at::Tensor tensor_or_undefined(const IValue& value) {
  return value.isTensor() ? value.toTensor() : at::Tensor();
}

IValue optional(const at::Tensor& tensor) { return tensor.defined() ? IValue(tensor) : IValue(); }

// The call's options but the tensor among them, batch_sizes, which is saved as tensors are.
constexpr const char* kBatchSizes = "batch_sizes";

struct Derivative : torch::autograd::Function<Derivative> {
  static constexpr bool is_traceable = true;

  // `given`: the inputs that are not None; bit i of `mask` says whether input i is. `stack` holds
  // the call's arguments, and is left holding its results.
  static variable_list forward(AutogradContext* ctx, at::TensorList given, int64_t index,
                               int64_t mask, Stack* stack) {
    const Cell& cell = cell_at(index);
    variable_list to_save(given.begin(), given.end());
    std::vector<IValue> options;
    at::Tensor batch_sizes;
    for (size_t i = 0; i < cell.options.size(); ++i) {
      const IValue& value = (*stack)[cell.num_inputs + i];
      const bool saved = cell.options[i] == kBatchSizes;
      if (saved) batch_sizes = tensor_or_undefined(value);
      options.push_back(saved ? IValue() : value);
    }
    {
      at::AutoDispatchBelowADInplaceOrView below;
      cell.forward.callBoxed(stack);
    }
    variable_list results;
    for (const IValue& value : *stack) results.push_back(value.toTensor());
    ctx->mark_non_differentiable(
        variable_list(results.begin() + static_cast<int64_t>(cell.num_results), results.end()));
    ctx->set_materialize_grads(false);
    // Detached, for until they are packed the node owns what is to be saved: a result itself would
    // own the node in turn, and both would stay if packing ends by an exception, as that of
    // torch.utils.checkpoint does. Changes in place are still noticed.
    const bool half = at::isReducedFloatingType(results[0].scalar_type());
    to_save.push_back(half ? results.back() : results[0].detach());
    for (size_t i = 1 + cell.num_states; i + 1 < results.size(); ++i)
      to_save.push_back(i < cell.num_results ? results[i].detach() : results[i]);
    to_save.push_back(batch_sizes);
    ctx->save_for_backward(std::move(to_save));
    ctx->saved_data["cell"] = index;
    ctx->saved_data["mask"] = mask;
    ctx->saved_data["options"] = c10::ivalue::Tuple::create(std::move(options));
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_results) {
    const int64_t index = ctx->saved_data["cell"].toInt();
    const int64_t mask = ctx->saved_data["mask"].toInt();
    const Cell& cell = cell_at(index);
    const variable_list saved = ctx->get_saved_variables();
    variable_list inputs(cell.num_inputs);
    std::vector<bool> needed(cell.num_inputs);
    size_t given = 0;
    for (size_t i = 0; i < cell.num_inputs; ++i)
      if (mask >> i & 1) {
        needed[i] = ctx->needs_input_grad(given);
        inputs[i] = saved[given++];
      }
    const variable_list kept(saved.begin() + static_cast<int64_t>(given), saved.end() - 1);
    std::vector<IValue> options = ctx->saved_data["options"].toTupleRef().elements().vec();
    for (size_t i = 0; i < options.size(); ++i)
      if (cell.options[i] == kBatchSizes) options[i] = optional(saved.back());
    const variable_list grads(grad_results.begin(),
                              grad_results.begin() + static_cast<int64_t>(cell.num_results));

    variable_list gradients;
    if (at::GradMode::is_enabled() || transformed()) {
      gradients = composite_gradients(cell.name, cell.options, options, inputs, needed, grads);
    } else {
      gradients = run_backward(cell, grads, inputs, kept, options, needed);
    }
    // One for each input that was given, then what forward took beside them.
    variable_list result;
    for (size_t i = 0; i < cell.num_inputs; ++i)
      if (mask >> i & 1) result.push_back(needed[i] ? gradients[i] : at::Tensor());
    result.resize(result.size() + 3);
    return result;
  }

  static variable_list run_backward(const Cell& cell, const variable_list& grads,
                                    const variable_list& inputs, const variable_list& kept,
                                    const std::vector<IValue>& options,
                                    const std::vector<bool>& needed) {
    const size_t bias = cell.bias();
    bool need_weights = needed[bias - 2] || needed[bias - 1];
    for (size_t i = bias + 2; i < cell.num_inputs; ++i) need_weights = need_weights || needed[i];
    Stack stack;
    for (const at::Tensor& grad : grads) stack.push_back(optional(grad));
    for (size_t i = 0; i < cell.num_inputs; ++i)
      if (i != bias && i != bias + 1) stack.push_back(optional(inputs[i]));
    for (const at::Tensor& tensor : kept) stack.emplace_back(tensor);
    for (const std::string& name : cell.backward_options) {
      size_t i = 0;
      while (i < cell.options.size() && cell.options[i] != name) ++i;
      if (i < cell.options.size())
        stack.push_back(options[i]);
      else if (name == "need_input")
        stack.emplace_back(static_cast<bool>(needed[0]));
      else if (name == "need_weights")
        stack.emplace_back(need_weights);
      else
        stack.emplace_back(needed[bias] || needed[bias + 1]);
    }
    cell.backward.callBoxed(stack);
    variable_list gradients;
    for (const IValue& value : stack) gradients.push_back(value.toTensor());
    if (gradients.size() < cell.num_inputs) {
      // One gradient for both biases. Were it one tensor, too, an update in place of one would
      // change the other.
      const at::Tensor grad = gradients[bias];
      const bool both = needed[bias] && needed[bias + 1];
      gradients.insert(gradients.begin() + static_cast<int64_t>(bias), both ? grad.clone() : grad);
    }
    return gradients;
  }
};

template <int64_t index>
void differentiable(const OperatorHandle&, c10::DispatchKeySet, Stack* stack) {
  const Cell& cell = cell_at(index);
  if (!at::GradMode::is_enabled()) {
    at::AutoDispatchBelowADInplaceOrView below;
    return cell.forward.callBoxed(stack);
  }
  variable_list given;
  int64_t mask = 0;
  for (size_t i = 0; i < cell.num_inputs; ++i) {
    const at::Tensor tensor = tensor_or_undefined((*stack)[i]);
    if (!tensor.defined()) continue;
    given.push_back(tensor);
    mask |= int64_t{1} << i;
  }
  const variable_list results = Derivative::apply(at::TensorList(given), index, mask, stack);
  stack->assign(results.begin(), results.end());
}

}  // namespace

bool transformed() {
  const auto included = c10::impl::tls_local_dispatch_key_set().included_;
  return included.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
         included.has(c10::DispatchKey::FuncTorchDynamicLayerBackMode) ||
         torch::autograd::ForwardADLevel::try_get_by_idx(0) != nullptr;
}

}  // namespace rnnfast

TORCH_LIBRARY_IMPL(rnnfast, Autograd, m) {
  m.impl("lstm", torch::CppFunction::makeFromBoxedFunction<&rnnfast::differentiable<0>>());
  m.impl("gru", torch::CppFunction::makeFromBoxedFunction<&rnnfast::differentiable<1>>());
  m.impl("rnn", torch::CppFunction::makeFromBoxedFunction<&rnnfast::differentiable<2>>());
}

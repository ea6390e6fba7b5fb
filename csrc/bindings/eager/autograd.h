// What the derivative asks of Python, and what others ask of it.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <string>
#include <vector>

namespace rnnfast {

// Whether forward-mode differentiation or a transform of torch.func is at work.
bool transformed();

// The gradients of the inputs that need them, undefined elsewhere, differentiable again: Python
// runs autograd on the op's twin in plain torch.
std::vector<at::Tensor> composite_gradients(const std::string& cell,
                                            const std::vector<std::string>& option_names,
                                            const std::vector<c10::IValue>& options,
                                            const std::vector<at::Tensor>& inputs,
                                            const std::vector<bool>& needed,
                                            const std::vector<at::Tensor>& grad_results);

}  // namespace rnnfast

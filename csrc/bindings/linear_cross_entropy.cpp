// The linear cross entropy op on CPU tensors.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "bindings/host.h"
#include "bindings/layer.h"
#include "bindings/string.h"

namespace rnnfast {
namespace {

using torch::headeronly::ScalarType;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class... Parts>
[[noreturn]] void reject(const Parts&... parts) {
  fail("rnnfast::linear_cross_entropy: ", parts...);
}

void check_dimensions(const char* name, const Tensor& tensor, int64_t dimensions,
                      const char* meaning) {
  if (tensor.dim() != dimensions)
    reject(name, " must be ", dimensions, "-D ", meaning, ", but has ", tensor.dim(),
           " dimensions");
}

void check_size(const char* name, const char* size_name, int64_t size, int64_t expected) {
  if (size != expected) reject(name, " must have ", size_name, " ", expected, ", but has ", size);
}

// `tensor`, contiguous, of the input's dtype and on the CPU.
Tensor like_input(const char* name, const Tensor& tensor, const Tensor& input) {
  if (tensor.scalar_type() != input.scalar_type())
    reject(name, " must have the dtype of input, ",
           torch::headeronly::toString(input.scalar_type()), ", but got ",
           torch::headeronly::toString(tensor.scalar_type()));
  if (!tensor.is_cpu()) reject(name, " must be on the CPU, as input is");
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor checked_target(const Tensor& target, int64_t rows, int64_t classes, int64_t ignore_index) {
  check_dimensions("target", target, 1, "[rows]");
  check_size("target", "rows", target.size(0), rows);
  if (target.scalar_type() != ScalarType::Long || !target.is_cpu())
    reject("target must have dtype Long and be on the CPU, but got ",
           torch::headeronly::toString(target.scalar_type()));
  const Tensor packed = target.is_contiguous() ? target : torch::stable::contiguous(target);
  const int64_t* values = static_cast<const int64_t*>(packed.const_data_ptr());
  for (int64_t n = 0; n < rows; ++n)
    if ((values[n] < 0 || values[n] >= classes) && values[n] != ignore_index)
      reject("target must be in [0, ", classes, ") or be ignore_index (", ignore_index,
             "), but target[", n, "] is ", values[n]);
  return packed;
}

bool is_mean(const std::string& reduction) {
  if (reduction != "mean" && reduction != "sum")
    reject("reduction must be 'mean' or 'sum', but got '", reduction, "'");
  return reduction == "mean";
}

Results linear_cross_entropy(Tensor input, Tensor weight, OptionalTensor bias, Tensor target,
                             int64_t ignore_index, String reduction, String precision,
                             bool need_input, bool need_weight, bool need_bias) {
  check_dimensions("input", input, 2, "[rows, in_features]");
  if (input.scalar_type() != ScalarType::Float && input.scalar_type() != ScalarType::Double)
    reject("input must have dtype Float or Double, but got ",
           torch::headeronly::toString(input.scalar_type()));
  check_dimensions("weight", weight, 2, "[num_classes, in_features]");
  const int64_t rows = input.size(0), features = input.size(1), classes = weight.size(0);
  if (classes < 1) reject("weight must have at least one class");
  if (classes > INT32_MAX) reject("weight must have fewer than 2^31 classes, but has ", classes);
  check_size("weight", "in_features", weight.size(1), features);
  const Tensor x = input.stride(1) == 1 || features <= 1 ? input : torch::stable::contiguous(input);
  const Tensor w = like_input("weight", weight, input);
  OptionalTensor b;
  if (bias) {
    check_dimensions("bias", *bias, 1, "[num_classes]");
    check_size("bias", "num_classes", bias->size(0), classes);
    b = like_input("bias", *bias, input);
  }
  const Tensor labels = checked_target(target, rows, classes, ignore_index);
  const auto empty = [&](std::initializer_list<int64_t> shape) { return new_tensor(input, shape); };
  Tensor loss = empty({});
  Tensor grad_input = need_input ? empty({rows, features}) : empty({0});
  Tensor grad_weight = need_weight ? empty({classes, features}) : empty({0});
  Tensor grad_bias = need_bias ? empty({classes}) : empty({0});

  LinearCrossEntropy args{};
  args.rows = rows;
  args.features = features;
  args.classes = classes;
  args.ignore_index = ignore_index;
  args.mean = is_mean(reduction);
  args.input = x.const_data_ptr();
  args.input_row = x.stride(0);
  args.weight = w.const_data_ptr();
  args.bias = pointer(b);
  args.target = static_cast<const int64_t*>(labels.const_data_ptr());
  args.loss = loss.mutable_data_ptr();
  args.grad_input = pointer_if(need_input, grad_input);
  args.grad_weight = pointer_if(need_weight, grad_weight);
  args.grad_bias = pointer_if(need_bias, grad_bias);
  cpu_kernels("rnnfast::linear_cross_entropy", input, precision, false)
      .linear_cross_entropy(Host().runtime(), &args);
  return {loss, grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace rnnfast

STABLE_TORCH_LIBRARY_IMPL(rnnfast, CPU, m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&rnnfast::linear_cross_entropy));
}

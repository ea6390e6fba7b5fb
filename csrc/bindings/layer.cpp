#include "bindings/layer.h"

#include <sstream>
#include <stdexcept>
#include <string>

namespace rnnfast {
namespace {

using torch::headeronly::ScalarType;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  const char* separator = "";
  text << "[";
  for (int64_t size : sizes) {
    text << separator << size;
    separator = ", ";
  }
  text << "]";
  return text.str();
}

void check_dimensions(const char* op, const char* name, const Tensor& tensor, int64_t expected,
                      const char* meaning) {
  if (tensor.dim() != expected)
    fail(op, ": ", name, " must be ", expected, "-D ", meaning, ", but got shape ",
         shape_text(tensor.sizes()));
}

const Tensor& three_dimensional(const char* op, const Tensor& input, bool batch_first) {
  check_dimensions(op, "input", input, 3,
                   batch_first ? "[batch, seq_len, input_size]" : "[seq_len, batch, input_size]");
  if (input.scalar_type() != ScalarType::Float && input.scalar_type() != ScalarType::Double)
    fail(op, ": input must have dtype Float or Double, but got ",
         torch::headeronly::toString(input.scalar_type()));
  return input;
}

Tensor packed(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

bool features_contiguous(const Tensor& tensor) {
  return tensor.stride(2) == 1 || tensor.size(2) <= 1;
}

}  // namespace

SequenceView::SequenceView(const Tensor& source, bool batch_first)
    : tensor(features_contiguous(source) ? source : torch::stable::contiguous(source)),
      time(tensor.stride(batch_first ? 1 : 0)),
      row(tensor.stride(batch_first ? 0 : 1)) {}

Layer::Layer(const char* op_, int64_t gates, const Tensor& input_, const Tensor& h_0_,
             const Tensor& weight_ih_, const Tensor& weight_hh_, const OptionalTensor& bias_ih_,
             const OptionalTensor& bias_hh_, bool batch_first_)
    : op(op_),
      batch_first(batch_first_),
      input(three_dimensional(op_, input_, batch_first_), batch_first_) {
  seq_len = input_.size(batch_first ? 1 : 0);
  batch = input_.size(batch_first ? 0 : 1);
  input_size = input_.size(2);
  check_dimensions(op, "weight_hh", weight_hh_, 2, "[gates * hidden_size, hidden_size]");
  hidden_size = weight_hh_.size(1);
  if (hidden_size < 1) fail(op, ": weight_hh has hidden_size 0, expected at least 1");
  weight_hh = checked("weight_hh", weight_hh_, {gates * hidden_size, hidden_size});
  weight_ih = checked("weight_ih", weight_ih_, {gates * hidden_size, input_size});
  h_0 = checked("h_0", h_0_, {batch, hidden_size});
  if (bias_ih_) bias_ih = checked("bias_ih", *bias_ih_, {gates * hidden_size});
  if (bias_hh_) bias_hh = checked("bias_hh", *bias_hh_, {gates * hidden_size});
}

Tensor Layer::checked(const char* name, const Tensor& tensor,
                      std::initializer_list<int64_t> shape) const {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t d = 0;
  for (int64_t size : shape) same = same && tensor.size(d++) == size;
  if (!same)
    fail(op, ": ", name, " must have shape ", shape_text(shape), ", but got ",
         shape_text(tensor.sizes()));
  if (tensor.scalar_type() != input.tensor.scalar_type())
    fail(op, ": ", name, " must have the dtype of input, ",
         torch::headeronly::toString(input.tensor.scalar_type()), ", but got ",
         torch::headeronly::toString(tensor.scalar_type()));
  if (!tensor.is_cpu()) fail(op, ": ", name, " must be on the CPU, as input is");
  return packed(tensor);
}

Tensor Layer::checked_sequence(const char* name, const Tensor& tensor, int64_t features) const {
  return batch_first ? checked(name, tensor, {batch, seq_len, features})
                     : checked(name, tensor, {seq_len, batch, features});
}

std::optional<SequenceView> Layer::gradient(const char* name, const OptionalTensor& tensor) const {
  if (!tensor) return std::nullopt;
  // A view with contiguous features needs no copy, so the shape alone is checked.
  const bool same = tensor->dim() == 3 && tensor->size(batch_first ? 1 : 0) == seq_len &&
                    tensor->size(batch_first ? 0 : 1) == batch && tensor->size(2) == hidden_size;
  if (!same || tensor->scalar_type() != input.tensor.scalar_type() || !tensor->is_cpu())
    checked_sequence(name, *tensor, hidden_size);
  return SequenceView(*tensor, batch_first);
}

OptionalTensor Layer::state_gradient(const char* name, const OptionalTensor& tensor) const {
  if (!tensor) return std::nullopt;
  return checked(name, *tensor, {batch, hidden_size});
}

Tensor Layer::empty(std::initializer_list<int64_t> shape) const {
  return torch::stable::new_empty(
      input.tensor, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()));
}

Tensor Layer::empty_if(bool wanted, std::initializer_list<int64_t> shape) const {
  return wanted ? empty(shape) : empty({0});
}

Tensor Layer::empty_sequence(int64_t features) const {
  return batch_first ? empty({batch, seq_len, features}) : empty({seq_len, batch, features});
}

Gradients Layer::empty_gradients(int64_t gates, bool need_input, bool need_weights) const {
  return {need_input ? empty_sequence(input_size) : empty({0}), empty({batch, hidden_size}),
          empty_if(need_weights, {gates * hidden_size, input_size}),
          empty_if(need_weights, {gates * hidden_size, hidden_size})};
}

const CpuKernels& Layer::kernels() const {
  const CpuIsa* isa = cpu_isa();
  return input.tensor.scalar_type() == ScalarType::Float ? isa->float32 : isa->float64;
}

}  // namespace rnnfast

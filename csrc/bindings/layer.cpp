#include "bindings/layer.h"

#include <sys/mman.h>

namespace rnnfast {
namespace {

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

const Tensor& checked_input(const char* op, const Tensor& input, bool packed, bool batch_first) {
  if (packed && batch_first) fail(op, ": batch_first must be False where batch_sizes are given");
  check_dimensions(op, "input", input, packed ? 2 : 3,
                   packed        ? "[rows, input_size]"
                   : batch_first ? "[batch, seq_len, input_size]"
                                 : "[seq_len, batch, input_size]");
  const ScalarType dtype = input.scalar_type();
  const bool half = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  if (dtype != ScalarType::Float && dtype != ScalarType::Double && !(half && input.is_cpu()))
    fail(op, ": input must have dtype Float or Double or, on the CPU, Half or BFloat16, but got ",
         torch::headeronly::toString(dtype));
  return input;
}

Tensor packed(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

bool features_contiguous(const Tensor& tensor) {
  const int64_t features = tensor.dim() - 1;
  return tensor.stride(features) == 1 || tensor.size(features) <= 1;
}

OptionalTensor contiguous_sizes(const char* op, const OptionalTensor& batch_sizes) {
  if (!batch_sizes) return std::nullopt;
  check_dimensions(op, "batch_sizes", *batch_sizes, 1, "[seq_len]");
  if (batch_sizes->scalar_type() != ScalarType::Long || !batch_sizes->is_cpu())
    fail(op, ": batch_sizes must have dtype Long and be on the CPU, but got ",
         torch::headeronly::toString(batch_sizes->scalar_type()));
  return packed(*batch_sizes);
}

// Memory of this size comes fresh from the system at each call; in small pages, fetching it takes
// longer than filling it.
void ask_for_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr int64_t kFresh = int64_t{32} << 20, kPage = 4096;
  if (bytes < kFresh) return;
  char* const begin = static_cast<char*>(memory);
  char* const page = begin + (kPage - reinterpret_cast<uintptr_t>(begin) % kPage) % kPage;
  madvise(page, static_cast<size_t>(begin + bytes - page) / kPage * kPage, MADV_HUGEPAGE);
#endif
}

int32_t device_type(const Tensor& tensor) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

bool same_device(const Tensor& a, const Tensor& b) {
  if (a.is_cpu() || b.is_cpu()) return a.is_cpu() && b.is_cpu();
  return device_type(a) == device_type(b) && a.get_device_index() == b.get_device_index();
}

}  // namespace

Precision precision_of(const char* op, const std::string& name, const Tensor& input) {
  constexpr std::pair<const char*, Precision> kNames[] = {{"fp32", Precision::fp32},
                                                          {"tf32", Precision::tf32},
                                                          {"bf16", Precision::bf16},
                                                          {"fp16", Precision::fp16}};
  for (const auto& [known, precision] : kNames) {
    if (name != known) continue;
    if (precision != Precision::fp32 && input.scalar_type() == ScalarType::Double)
      fail(op, ": precision must be 'fp32' where input has dtype Double, but got '", name, "'");
    return precision;
  }
  fail(op, ": precision must be 'fp32', 'tf32', 'bf16' or 'fp16', but got '", name, "'");
}

Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape) {
  return new_tensor(like, shape, like.scalar_type());
}

Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  int64_t strides[3];
  int64_t count = 1, d = static_cast<int64_t>(shape.size());
  for (auto size = shape.end(); size != shape.begin();) {
    strides[--d] = count;
    count *= *--size;
  }
  const bool on_cpu = like.is_cpu();
  const int32_t type = dtype == ScalarType::Float    ? aoti_torch_dtype_float32()
                       : dtype == ScalarType::Double ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Half   ? aoti_torch_dtype_float16()
                                                     : aoti_torch_dtype_bfloat16();
  // Not new_empty, which goes through the dispatcher: a short call makes half a dozen tensors.
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.begin(), strides, type,
                               on_cpu ? aoti_torch_device_type_cpu() : device_type(like),
                               on_cpu ? 0 : like.get_device_index(), &made));
  Tensor tensor(made);
  const int64_t bytes = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
  if (on_cpu) ask_for_huge_pages(tensor.mutable_data_ptr(), count * bytes);
  return tensor;
}

SequenceView::SequenceView(const Tensor& source, bool batch_first)
    : tensor(features_contiguous(source) ? source : torch::stable::contiguous(source)),
      time(tensor.dim() == 2 ? 0 : tensor.stride(batch_first ? 1 : 0)),
      row(tensor.stride(tensor.dim() == 2 || batch_first ? 0 : 1)) {}

Layer::Layer(const char* op_, int64_t gates, const Tensor& input_, const Tensor& h_0_,
             const Tensor& weight_ih_, const Tensor& weight_hh_, const OptionalTensor& bias_ih_,
             const OptionalTensor& bias_hh_, const OptionalTensor& weight_hr_,
             const OptionalTensor& batch_sizes_, bool batch_first_)
    : op(op_),
      batch_first(batch_first_),
      batch_sizes(contiguous_sizes(op_, batch_sizes_)),
      input(checked_input(op_, input_, batch_sizes_.has_value(), batch_first_), batch_first_) {
  check_dimensions(op, "h_0", h_0_, 2, "[batch, hidden_size]");
  seq_len = batch_sizes ? batch_sizes->size(0) : input_.size(batch_first ? 1 : 0);
  batch = batch_sizes ? h_0_.size(0) : input_.size(batch_first ? 0 : 1);
  input_size = input_.size(input_.dim() - 1);
  check_dimensions(op, "weight_hh", weight_hh_, 2, "[gates * hidden_size, hidden_size]");
  state_size = weight_hh_.size(1);
  if (weight_hr_) check_dimensions(op, "weight_hr", *weight_hr_, 2, "[proj_size, hidden_size]");
  hidden_size = weight_hr_ ? weight_hr_->size(1) : state_size;
  if (hidden_size < 1 || state_size < 1)
    fail(op, ": hidden_size and proj_size must be at least 1, but weight_hh has shape ",
         shape_text(weight_hh_.sizes()));
  weight_hh = checked("weight_hh", weight_hh_, {gates * hidden_size, state_size});
  weight_ih = checked("weight_ih", weight_ih_, {gates * hidden_size, input_size});
  h_0 = checked("h_0", h_0_, {batch, state_size});
  if (bias_ih_) bias_ih = checked("bias_ih", *bias_ih_, {gates * hidden_size});
  if (bias_hh_) bias_hh = checked("bias_hh", *bias_hh_, {gates * hidden_size});
  if (weight_hr_) weight_hr = checked("weight_hr", *weight_hr_, {state_size, hidden_size});
  if (batch_sizes) check_batch_sizes();
}

void Layer::check_batch_sizes() {
  const int64_t* sizes = static_cast<const int64_t*>(batch_sizes->const_data_ptr());
  int64_t most = batch, rows = 0;
  for (int64_t t = 0; t < seq_len; ++t) {
    if (sizes[t] < 0 || sizes[t] > most)
      fail(op, ": batch_sizes must not increase, from at most batch (", batch,
           ") to at least 0, but batch_sizes[", t, "] is ", sizes[t], " after ", most);
    most = sizes[t];
    rows += sizes[t];
  }
  ragged = seq_len == 1 || most < batch;
  if (rows != input.tensor.size(0))
    fail(op, ": input must have as many rows as batch_sizes add up to, ", rows, ", but got shape ",
         shape_text(input.tensor.sizes()));
}

Tensor Layer::checked(const char* name, const Tensor& tensor,
                      std::initializer_list<int64_t> shape) const {
  return checked(name, tensor, shape, input.tensor.scalar_type());
}

Tensor Layer::checked(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape,
                      ScalarType dtype) const {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t d = 0;
  for (int64_t size : shape) same = same && tensor.size(d++) == size;
  if (!same)
    fail(op, ": ", name, " must have shape ", shape_text(shape), ", but got ",
         shape_text(tensor.sizes()));
  if (tensor.scalar_type() != dtype)
    fail(op, ": ", name, " must have the dtype ",
         dtype == input.tensor.scalar_type() ? "of input, " : "in which this input is computed, ",
         torch::headeronly::toString(dtype), ", but got ",
         torch::headeronly::toString(tensor.scalar_type()));
  if (!same_device(tensor, input.tensor)) fail(op, ": ", name, " must be on the device of input");
  return packed(tensor);
}

Tensor Layer::checked_sequence(const char* name, const Tensor& tensor, int64_t features) const {
  return checked_sequence(name, tensor, features, input.tensor.scalar_type());
}

Tensor Layer::checked_kept(const char* name, const Tensor& tensor, int64_t features) const {
  return checked_sequence(name, tensor, features, computed_type(input.tensor));
}

Tensor Layer::checked_sequence(const char* name, const Tensor& tensor, int64_t features,
                               ScalarType dtype) const {
  if (batch_sizes) return checked(name, tensor, {input.tensor.size(0), features}, dtype);
  return batch_first ? checked(name, tensor, {batch, seq_len, features}, dtype)
                     : checked(name, tensor, {seq_len, batch, features}, dtype);
}

std::optional<SequenceView> Layer::gradient(const char* name, const OptionalTensor& tensor,
                                            int64_t features) const {
  return gradient(name, tensor, features, input.tensor.scalar_type());
}

std::optional<SequenceView> Layer::kept_gradient(const char* name, const OptionalTensor& tensor,
                                                 int64_t features) const {
  return gradient(name, tensor, features, computed_type(input.tensor));
}

std::optional<SequenceView> Layer::gradient(const char* name, const OptionalTensor& tensor,
                                            int64_t features, ScalarType dtype) const {
  if (!tensor) return std::nullopt;
  // A view with contiguous features needs no copy, so the shape alone is checked.
  const int64_t last = input.tensor.dim() - 1;
  bool same = tensor->dim() == last + 1 && tensor->size(last) == features;
  for (int64_t d = 0; d < last; ++d) same = same && tensor->size(d) == input.tensor.size(d);
  if (!same || tensor->scalar_type() != dtype || !same_device(*tensor, input.tensor))
    checked_sequence(name, *tensor, features, dtype);
  return SequenceView(*tensor, batch_first);
}

OptionalTensor Layer::state_gradient(const char* name, const OptionalTensor& tensor) const {
  if (!tensor) return std::nullopt;
  return checked(name, *tensor, {batch, state_size});
}

Tensor Layer::empty(std::initializer_list<int64_t> shape) const {
  return new_tensor(input.tensor, shape);
}

Tensor Layer::empty_if(bool wanted, std::initializer_list<int64_t> shape) const {
  return wanted ? empty(shape) : empty({0});
}

Tensor Layer::empty_sequence(int64_t features) const {
  return empty_sequence(features, input.tensor.scalar_type());
}

Tensor Layer::empty_kept(int64_t features) const {
  return empty_sequence(features, computed_type(input.tensor));
}

Tensor Layer::empty_states(bool wanted) const {
  return wanted && storage() != Storage::own ? empty_kept(state_size) : empty({0});
}

Tensor Layer::empty_sequence(int64_t features, ScalarType dtype) const {
  if (batch_sizes) return new_tensor(input.tensor, {input.tensor.size(0), features}, dtype);
  return batch_first ? new_tensor(input.tensor, {batch, seq_len, features}, dtype)
                     : new_tensor(input.tensor, {seq_len, batch, features}, dtype);
}

Gradients Layer::empty_gradients(int64_t gates, bool need_input, bool need_weights) const {
  return {need_input ? empty_sequence(input_size) : empty({0}), empty({batch, state_size}),
          empty_if(need_weights, {gates * hidden_size, input_size}),
          empty_if(need_weights, {gates * hidden_size, state_size})};
}

}  // namespace rnnfast

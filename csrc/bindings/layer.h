// Checks and allocation that the ops of all cells share. Every message names the op, the argument,
// what came and what was expected.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "bindings/storage_of.h"

namespace rnnfast {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// To what the operands of a matrix product are rounded; sums and all else are in the tensors' type.
enum class Precision { fp32, tf32, bf16, fp16 };

// That of the name; of float64 tensors, whose operands are never rounded, the first alone.
Precision precision_of(const char* op, const std::string& name, const Tensor& input);

// A [seq_len, batch, features] tensor (or [batch, seq_len, features], or [rows, features] where
// rows are packed) with its features contiguous.
struct SequenceView {
  Tensor tensor;
  int64_t time, row;  // strides in elements; none over time where rows are packed (Layer::time_of)

  // Copies only where the features themselves are strided.
  SequenceView(const Tensor& source, bool batch_first);
};

using torch::headeronly::ScalarType;

// The dtype that layers of such tensors are computed in, and in which they keep what backward
// reads.
inline ScalarType computed_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A contiguous tensor on the device of `like`, uninitialised; of its dtype, or of another one.
Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape);
Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype);

inline const void* pointer(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

inline void* pointer_if(bool wanted, const Tensor& tensor) {
  return wanted ? tensor.mutable_data_ptr() : nullptr;
}

// The gradients that every cell has; empty where not needed.
struct Gradients {
  Tensor input, h_0, weight_ih, weight_hh;
};

// One layer's checked arguments.
struct Layer {
  const char* op;
  bool batch_first;
  OptionalTensor batch_sizes;
  SequenceView input;
  Tensor h_0, weight_ih, weight_hh;
  OptionalTensor bias_ih, bias_hh, weight_hr;
  int64_t seq_len, batch, input_size, hidden_size;
  // Whether steps have unequal rows. Packed rows that are not ragged are like any others, but for a
  // single step, which has to have the bits that it has among more.
  bool ragged = false;
  int64_t state_size;  // features of h: proj_size where there is a projection, or hidden_size

  Layer(const char* op, int64_t gates, const Tensor& input, const Tensor& h_0,
        const Tensor& weight_ih, const Tensor& weight_hh, const OptionalTensor& bias_ih,
        const OptionalTensor& bias_hh, const OptionalTensor& weight_hr,
        const OptionalTensor& batch_sizes, bool batch_first);

  // `tensor`, contiguous, after a check that it has this shape, and dtype and device of the input.
  Tensor checked(const char* name, const Tensor& tensor,
                 std::initializer_list<int64_t> shape) const;
  Tensor checked_sequence(const char* name, const Tensor& tensor, int64_t features) const;
  // The same, of what forward has kept: its dtype is that of computing.
  Tensor checked_kept(const char* name, const Tensor& tensor, int64_t features) const;
  // A view of a gradient that may be absent; its features are contiguous.
  std::optional<SequenceView> gradient(const char* name, const OptionalTensor& tensor,
                                       int64_t features) const;
  // The same, of the gradient of what forward has kept.
  std::optional<SequenceView> kept_gradient(const char* name, const OptionalTensor& tensor,
                                            int64_t features) const;
  OptionalTensor state_gradient(const char* name, const OptionalTensor& tensor) const;

  Tensor empty(std::initializer_list<int64_t> shape) const;
  Tensor empty_if(bool wanted, std::initializer_list<int64_t> shape) const;
  // Laid out as the input is, with that many features; contiguous.
  Tensor empty_sequence(int64_t features) const;
  // The same, for what is kept for backward.
  Tensor empty_kept(int64_t features) const;
  // For the states of every step, where the output is not they; else empty.
  Tensor empty_states(bool wanted) const;
  // Stride over time of a sequence; of packed rows, where they are not ragged.
  int64_t time_of(const SequenceView& view) const {
    return batch_sizes ? batch * view.row : view.time;
  }
  // Strides, over features, of such a tensor.
  int64_t time_stride(int64_t features) const { return (batch_first ? 1 : batch) * features; }
  int64_t row_stride(int64_t features) const { return (batch_first ? seq_len : 1) * features; }

  // In what type the kernels find its tensors.
  Storage storage() const { return storage_of(input.tensor.scalar_type()); }

  Gradients empty_gradients(int64_t gates, bool need_input, bool need_weights) const;

  // Fills what every cell's args struct calls by the same name.
  template <class Args>
  void fill(Args& args) const {
    args.seq_len = seq_len;
    args.batch = batch;
    args.input_size = input_size;
    args.hidden_size = hidden_size;
    args.storage = storage();
    if (ragged) args.batch_sizes = static_cast<const int64_t*>(batch_sizes->const_data_ptr());
    args.input = input.tensor.const_data_ptr();
    args.input_time = time_of(input);
    args.input_row = input.row;
    args.h_0 = h_0.const_data_ptr();
    args.weight_ih = weight_ih.const_data_ptr();
    args.weight_hh = weight_hh.const_data_ptr();
    args.output_time = time_stride(state_size);
    args.output_row = row_stride(state_size);
  }

  // The same for backward, but for what `fill` has filled.
  template <class Args>
  void fill_gradients(Args& args, const std::optional<SequenceView>& grad_output,
                      const OptionalTensor& grad_h_n, const Gradients& gradients, bool need_input,
                      bool need_weights) const {
    if (grad_output) {
      args.grad_output = grad_output->tensor.const_data_ptr();
      args.grad_output_time = time_of(*grad_output);
      args.grad_output_row = grad_output->row;
    }
    args.grad_h_n = pointer(grad_h_n);
    args.grad_input = pointer_if(need_input, gradients.input);
    args.grad_input_time = time_stride(input_size);
    args.grad_input_row = row_stride(input_size);
    args.grad_h_0 = gradients.h_0.mutable_data_ptr();
    args.grad_weight_ih = pointer_if(need_weights, gradients.weight_ih);
    args.grad_weight_hh = pointer_if(need_weights, gradients.weight_hh);
  }

 private:
  void check_batch_sizes();
  Tensor checked(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape,
                 ScalarType dtype) const;
  Tensor checked_sequence(const char* name, const Tensor& tensor, int64_t features,
                          ScalarType dtype) const;
  Tensor empty_sequence(int64_t features, ScalarType dtype) const;
  std::optional<SequenceView> gradient(const char* name, const OptionalTensor& tensor,
                                       int64_t features, ScalarType dtype) const;
};

}  // namespace rnnfast

// The op with int8 weights on CPU tensors.
#include "quantized.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/host.h"
#include "bindings/layer.h"
#include "bindings/string.h"

namespace rnnfast {
namespace {

using torch::headeronly::ScalarType;
using Forward = std::tuple<Tensor, Tensor, Tensor>;
using Shape = std::vector<int64_t>;

template <class... Parts>
[[noreturn]] void reject(const Parts&... parts) {
  fail("rnnfast::quantized: ", parts...);
}

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text;
  for (int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

struct Mode {
  QuantizedCell cell;
  int64_t gates;
};

Mode mode_of(const std::string& name) {
  if (name == "LSTM") return {QuantizedLstm, 4};
  if (name == "GRU") return {QuantizedGru, 3};
  if (name == "RNN_TANH") return {QuantizedTanh, 1};
  if (name == "RNN_RELU") return {QuantizedRelu, 1};
  reject("mode must be 'LSTM', 'GRU', 'RNN_TANH' or 'RNN_RELU', but got '", name, "'");
}

void check(const char* name, const Tensor& tensor, ScalarType dtype, const Shape& shape) {
  const auto sizes = tensor.sizes();
  if (!std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()))
    reject(name, " must have shape ", shape_text(shape), ", but got ", shape_text(sizes));
  if (tensor.scalar_type() != dtype)
    reject(name, " must have dtype ", torch::headeronly::toString(dtype), ", but got ",
           torch::headeronly::toString(tensor.scalar_type()));
  if (!tensor.is_cpu()) reject(name, " must be on the CPU");
}

Tensor packed(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor checked(const char* name, const Tensor& tensor, ScalarType dtype, const Shape& shape) {
  check(name, tensor, dtype, shape);
  return packed(tensor);
}

OptionalTensor checked(const char* name, const OptionalTensor& tensor, ScalarType dtype,
                       const Shape& shape) {
  if (!tensor) return std::nullopt;
  return checked(name, *tensor, dtype, shape);
}

void check_batch_sizes(const Tensor& batch_sizes, int64_t batch, int64_t rows) {
  const int64_t* sizes = static_cast<const int64_t*>(batch_sizes.const_data_ptr());
  int64_t most = batch, sum = 0;
  for (int64_t t = 0; t < batch_sizes.size(0); ++t) {
    if (sizes[t] < 0 || sizes[t] > most)
      reject("batch_sizes must not increase, from at most batch (", batch,
             ") to at least 0, but batch_sizes[", t, "] is ", sizes[t], " after ", most);
    most = sizes[t];
    sum += most;
  }
  if (sum != rows)
    reject("input must have as many rows as batch_sizes add up to, ", sum, ", but has ", rows);
}

Forward quantized(Tensor input, Tensor h_0, OptionalTensor c_0, Tensor weight_ih, Tensor weight_hh,
                  Tensor scale_ih, Tensor scale_hh, OptionalTensor bias_ih, OptionalTensor bias_hh,
                  String mode, OptionalTensor batch_sizes, bool reset_after, bool batch_first,
                  bool reverse) {
  constexpr ScalarType kFloat = ScalarType::Float, kInt8 = ScalarType::Char;
  constexpr int64_t kTile = 16;
  const auto [cell, gates] = mode_of(mode);
  const bool is_packed = batch_sizes.has_value();
  if (is_packed && batch_first) reject("batch_first must be False where batch_sizes are given");
  if (input.dim() != (is_packed ? 2 : 3))
    reject("input must be ",
           is_packed     ? "2-D [rows, input_size]"
           : batch_first ? "3-D [batch, seq_len, input_size]"
                         : "3-D [seq_len, batch, input_size]",
           ", but got shape ", shape_text(input.sizes()));
  if (h_0.dim() != 2 || h_0.size(1) < 1)
    reject("h_0 must be 2-D [batch, hidden_size] with a hidden_size of at least 1, but got shape ",
           shape_text(h_0.sizes()));
  const int64_t hidden = h_0.size(1), batch = is_packed ? h_0.size(0) : input.size(!batch_first);
  const int64_t inputs = input.size(input.dim() - 1), rows = gates * hidden;
  const auto tiles = [&, gates = gates](int64_t depth) {
    return Shape{(hidden + kTile - 1) / kTile, (depth + kTile - 1) / kTile * kTile / 2, gates,
                 kTile, 2};
  };

  check("input", input, kFloat, Shape(input.sizes().begin(), input.sizes().end()));
  const SequenceView x(input, batch_first);
  const Tensor h_first = checked("h_0", h_0, kFloat, {batch, hidden});
  const bool is_lstm = cell == QuantizedLstm;
  if (c_0.has_value() != is_lstm) reject("c_0 must be given with mode 'LSTM', and only then");
  const OptionalTensor c_first = checked("c_0", c_0, kFloat, {batch, hidden});
  const Tensor w_ih = checked("weight_ih", weight_ih, kInt8, tiles(inputs));
  const Tensor w_hh = checked("weight_hh", weight_hh, kInt8, tiles(hidden));
  const Tensor s_ih = checked("scale_ih", scale_ih, kFloat, {rows});
  const Tensor s_hh = checked("scale_hh", scale_hh, kFloat, {rows});
  const OptionalTensor b_ih = checked("bias_ih", bias_ih, kFloat, {rows});
  const OptionalTensor b_hh = checked("bias_hh", bias_hh, kFloat, {rows});
  OptionalTensor sizes;
  if (is_packed) {
    if (batch_sizes->dim() != 1)
      reject("batch_sizes must be 1-D [seq_len], but got shape ", shape_text(batch_sizes->sizes()));
    sizes = checked("batch_sizes", *batch_sizes, ScalarType::Long, {batch_sizes->size(0)});
    check_batch_sizes(*sizes, batch, input.size(0));
  }
  const int64_t seq_len = is_packed ? sizes->size(0) : input.size(batch_first);

  Shape output_shape(input.sizes().begin(), input.sizes().end());
  output_shape.back() = hidden;
  Tensor output = torch::stable::new_empty(input, output_shape);
  Tensor h_n = torch::stable::new_empty(input, {batch, hidden});
  Tensor c_n = is_lstm ? torch::stable::new_empty(input, {batch, hidden})
                       : torch::stable::new_empty(input, {0});

  QuantizedForward args{};
  args.seq_len = seq_len;
  args.batch = batch;
  args.input_size = inputs;
  args.hidden_size = hidden;
  args.cell = cell;
  args.reverse = reverse;
  args.reset_after = reset_after;
  args.batch_sizes = static_cast<const int64_t*>(pointer(sizes));
  args.input = static_cast<const float*>(x.tensor.const_data_ptr());
  args.input_time = x.time;
  args.input_row = x.row;
  args.h_0 = static_cast<const float*>(h_first.const_data_ptr());
  args.c_0 = static_cast<const float*>(pointer(c_first));
  args.weight_ih = static_cast<const int8_t*>(w_ih.const_data_ptr());
  args.weight_hh = static_cast<const int8_t*>(w_hh.const_data_ptr());
  args.scale_ih = static_cast<const float*>(s_ih.const_data_ptr());
  args.scale_hh = static_cast<const float*>(s_hh.const_data_ptr());
  args.bias_ih = static_cast<const float*>(pointer(b_ih));
  args.bias_hh = static_cast<const float*>(pointer(b_hh));
  args.output = static_cast<float*>(output.mutable_data_ptr());
  args.output_time = (batch_first ? 1 : batch) * hidden;
  args.output_row = (batch_first ? seq_len : 1) * hidden;
  args.h_n = static_cast<float*>(h_n.mutable_data_ptr());
  args.c_n = static_cast<float*>(c_n.mutable_data_ptr());
  cpu_isa()->quantized_forward(Host().runtime(), &args);
  return {output, h_n, c_n};
}

}  // namespace
}  // namespace rnnfast

STABLE_TORCH_LIBRARY_IMPL(rnnfast, CPU, m) { m.impl("quantized", TORCH_BOX(&rnnfast::quantized)); }

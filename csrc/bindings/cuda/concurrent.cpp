// The ops for several recurrences at once, of every cell, on CUDA tensors.
#include <cstdint>
#include <string>
#include <vector>

#include "bindings/cuda/cells.h"
#include "bindings/cuda/launch.h"
#include "bindings/cuda/ops.h"

namespace rnnfast {
namespace {

using Tensors = std::vector<Tensor>;
using OptionalTensors = std::vector<OptionalTensor>;

enum class Mode { lstm, gru, rnn_tanh, rnn_relu };

// That of a name of torch.nn.RNNBase.
Mode mode_of(const char* op, const std::string& name) {
  if (name == "LSTM") return Mode::lstm;
  if (name == "GRU") return Mode::gru;
  if (name == "RNN_TANH") return Mode::rnn_tanh;
  if (name == "RNN_RELU") return Mode::rnn_relu;
  fail(op, ": mode must be 'LSTM', 'GRU', 'RNN_TANH' or 'RNN_RELU', but got '", name, "'");
}

int32_t gates_of(Mode mode) { return mode == Mode::lstm ? 4 : mode == Mode::gru ? 3 : 1; }

// Checks that a list has one element for each recurrence.
template <class List>
void check_count(const char* op, const char* name, const List& list, size_t count) {
  if (list.size() != count)
    fail(op, ": ", name, " must have ", count, " elements, one for each of input, but has ",
         list.size());
}

// The layers that all three ops are given.
struct Layers {
  const char* op;
  const Tensors &input, &h_0, &c_0, &weight_ih, &weight_hh;
  const std::vector<bool>& reverse;
  bool batch_first;
  const std::string& precision;

  size_t count() const { return input.size(); }

  void check(Mode mode) const {
    if (input.empty()) fail(op, ": input must have at least one tensor, but is empty");
    check_count(op, "h_0", h_0, count());
    check_count(op, "weight_ih", weight_ih, count());
    check_count(op, "weight_hh", weight_hh, count());
    check_count(op, "reverse", reverse, count());
    if (mode == Mode::lstm)
      check_count(op, "c_0", c_0, count());
    else if (!c_0.empty())
      fail(op, ": c_0 must be empty unless mode is 'LSTM', but has ", c_0.size(), " elements");
  }
};

// Output and final states of each, and what it keeps for backward.
Tensors run_forward(const Layers& layers, const OptionalTensors& bias_ih,
                    const OptionalTensors& bias_hh, const std::string& mode_name, bool keep) {
  const char* op = layers.op;
  const Mode mode = mode_of(op, mode_name);
  const OptionalTensor none;
  const auto& [_, input, h_0, c_0, weight_ih, weight_hh, reverse, batch_first, precision] = layers;
  layers.check(mode);
  check_count(op, "bias_ih", bias_ih, layers.count());
  check_count(op, "bias_hh", bias_hh, layers.count());
  Tensors results;
  const auto add = [&](std::initializer_list<Tensor> tensors) {
    results.insert(results.end(), tensors);
  };
  if (mode == Mode::lstm) {
    std::vector<LstmCall> calls;
    for (size_t i = 0; i < layers.count(); ++i)
      calls.push_back({op, input[i], h_0[i], c_0[i], weight_ih[i], weight_hh[i], bias_ih[i],
                       bias_hh[i], none, none, batch_first, reverse[i], precision});
    for (const LstmResults& r : lstm_forward(calls, keep ? LstmKeep::all : LstmKeep::nothing)) {
      add({r.output, r.h_n, r.c_n});
      if (keep) add({r.cells, r.gates});
    }
  } else if (mode == Mode::gru) {
    std::vector<GruCall> calls;
    for (size_t i = 0; i < layers.count(); ++i)
      calls.push_back({op, input[i], h_0[i], weight_ih[i], weight_hh[i], bias_ih[i], bias_hh[i],
                       none, true, batch_first, reverse[i], precision});
    for (const GruResults& r : gru_forward(calls, keep)) {
      add({r.output, r.h_n});
      if (keep) add({r.gates});
    }
  } else {
    std::vector<RnnCall> calls;
    for (size_t i = 0; i < layers.count(); ++i)
      calls.push_back({op, input[i], h_0[i], weight_ih[i], weight_hh[i], bias_ih[i], bias_hh[i],
                       none, mode == Mode::rnn_relu, batch_first, reverse[i], precision});
    for (const RnnResults& r : rnn_forward(calls)) add({r.output, r.h_n});
  }
  return results;
}

Tensors concurrent(Tensors input, Tensors h_0, Tensors c_0, Tensors weight_ih, Tensors weight_hh,
                   OptionalTensors bias_ih, OptionalTensors bias_hh, String mode, bool batch_first,
                   std::vector<bool> reverse, String precision) {
  return run_forward({"rnnfast::concurrent", input, h_0, c_0, weight_ih, weight_hh, reverse,
                      batch_first, precision},
                     bias_ih, bias_hh, mode, true);
}

Tensors concurrent_inference(Tensors input, Tensors h_0, Tensors c_0, Tensors weight_ih,
                             Tensors weight_hh, OptionalTensors bias_ih, OptionalTensors bias_hh,
                             String mode, bool batch_first, std::vector<bool> reverse,
                             String precision) {
  return run_forward({"rnnfast::concurrent_inference", input, h_0, c_0, weight_ih, weight_hh,
                      reverse, batch_first, precision},
                     bias_ih, bias_hh, mode, false);
}

Tensors concurrent_backward(OptionalTensors grad_output, OptionalTensors grad_h_n,
                            OptionalTensors grad_c_n, Tensors input, Tensors h_0, Tensors c_0,
                            Tensors weight_ih, Tensors weight_hh, Tensors output, Tensors cells,
                            Tensors gates, String mode_name, bool batch_first,
                            std::vector<bool> reverse, String precision,
                            std::vector<bool> need_input, bool need_weights, bool need_bias) {
  const char* op = "rnnfast::concurrent_backward";
  const Layers layers{op, input, h_0, c_0, weight_ih, weight_hh, reverse, batch_first, precision};
  const Mode mode = mode_of(op, mode_name);
  const OptionalTensor none;
  layers.check(mode);
  const size_t count = layers.count();
  check_count(op, "grad_output", grad_output, count);
  check_count(op, "grad_h_n", grad_h_n, count);
  check_count(op, "output", output, count);
  check_count(op, "need_input", need_input, count);
  if (mode == Mode::lstm) {
    check_count(op, "grad_c_n", grad_c_n, count);
    check_count(op, "cells", cells, count);
  }
  if (mode == Mode::lstm || mode == Mode::gru) check_count(op, "gates", gates, count);

  Tensors results;
  const auto add = [&](std::initializer_list<Tensor> tensors) {
    results.insert(results.end(), tensors);
  };
  const auto call_of = [&](size_t i) {
    return BackwardCall{op,           grad_output[i], grad_h_n[i],   input[i],     h_0[i],
                        weight_ih[i], weight_hh[i],   output[i],     none,         batch_first,
                        reverse[i],   precision,      need_input[i], need_weights, need_bias};
  };
  if (mode == Mode::lstm) {
    std::vector<LstmBackwardCall> calls;
    for (size_t i = 0; i < count; ++i)
      calls.push_back({call_of(i), grad_c_n[i], none, c_0[i], cells[i], gates[i]});
    for (const LstmGradients& g : lstm_backward(calls))
      add({g.input, g.h_0, g.c_0, g.weight_ih, g.weight_hh, g.bias});
  } else if (mode == Mode::gru) {
    std::vector<GruBackwardCall> calls;
    for (size_t i = 0; i < count; ++i) calls.push_back({call_of(i), gates[i], true});
    for (const GruGradients& g : gru_backward(calls))
      add({g.input, g.h_0, g.weight_ih, g.weight_hh, g.bias_ih, g.bias_hh});
  } else {
    std::vector<RnnBackwardCall> calls;
    for (size_t i = 0; i < count; ++i) calls.push_back({call_of(i), mode == Mode::rnn_relu});
    for (const RnnGradients& g : rnn_backward(calls))
      add({g.input, g.h_0, g.weight_ih, g.weight_hh, g.bias});
  }
  return results;
}

int64_t concurrent_at_once(Tensor like, int64_t count, int64_t batch, int64_t hidden_size,
                           String mode_name, String precision_name, bool backward) {
  const char* op = "rnnfast::concurrent_at_once";
  const Mode mode = mode_of(op, mode_name);
  const Precision precision = precision_of(op, precision_name, like);
  if (count < 1 || count > INT32_MAX) fail(op, ": count must be 1 to 2^31 - 1, but got ", count);
  const TensorDevice device(like);
  int64_t at_once = 1;
  with_operand(like, precision, [&](auto operand) {
    const SequencePlan plan = plan_here(op, {batch, hidden_size, gates_of(mode), sizeof(operand),
                                             backward, static_cast<int32_t>(count)});
    if (plan.persistent) at_once = plan.at_once;
  });
  return at_once;
}

}  // namespace

void register_concurrent_cuda(Registry& m) {
  m.impl("concurrent", TORCH_BOX(&concurrent));
  m.impl("concurrent_inference", TORCH_BOX(&concurrent_inference));
  m.impl("concurrent_backward", TORCH_BOX(&concurrent_backward));
  m.impl("concurrent_at_once", TORCH_BOX(&concurrent_at_once));
}

}  // namespace rnnfast

// The forward ops of the plain RNN by their schemas, whatever computes them.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "bindings/layer.h"
#include "bindings/string.h"

namespace rnnfast {

inline bool is_relu(const char* op, const std::string& nonlinearity) {
  if (nonlinearity != "tanh" && nonlinearity != "relu")
    fail(op, ": nonlinearity must be 'tanh' or 'relu', but got '", nonlinearity, "'");
  return nonlinearity == "relu";
}

struct RnnCall {
  const char* op;
  const Tensor &input, &h_0, &weight_ih, &weight_hh;
  const OptionalTensor &bias_ih, &bias_hh, &batch_sizes;
  bool relu, batch_first, reverse;
  const std::string& precision;
  int64_t packed = 0;

  Layer layer() const {
    return Layer(op, 1, input, h_0, weight_ih, weight_hh, bias_ih, bias_hh, std::nullopt,
                 batch_sizes, batch_first);
  }
};

// Where they are not kept, `states` are empty.
struct RnnResults {
  Tensor output, h_n, states;
};

// run(call, whether to keep the states) gives RnnResults.
template <RnnResults (*run)(const RnnCall&, bool)>
struct RnnOps {
  static std::tuple<Tensor, Tensor, Tensor> rnn(Tensor input, Tensor h_0, Tensor weight_ih,
                                                Tensor weight_hh, OptionalTensor bias_ih,
                                                OptionalTensor bias_hh, OptionalTensor batch_sizes,
                                                String nonlinearity, bool batch_first, bool reverse,
                                                String precision) {
    constexpr const char* op = "rnnfast::rnn";
    const RnnResults r = run({op, input, h_0, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes,
                              is_relu(op, nonlinearity), batch_first, reverse, precision},
                             true);
    return {r.output, r.h_n, r.states};
  }

  static std::tuple<Tensor, Tensor> inference(Tensor input, Tensor h_0, Tensor weight_ih,
                                              Tensor weight_hh, OptionalTensor bias_ih,
                                              OptionalTensor bias_hh, OptionalTensor batch_sizes,
                                              String nonlinearity, bool batch_first, bool reverse,
                                              String precision, int64_t packed) {
    constexpr const char* op = "rnnfast::rnn_inference";
    const RnnResults r = run({op, input, h_0, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes,
                              is_relu(op, nonlinearity), batch_first, reverse, precision, packed},
                             false);
    return {r.output, r.h_n};
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("rnn", TORCH_BOX(&RnnOps::rnn));
    m.impl("rnn_inference", TORCH_BOX(&RnnOps::inference));
  }
};

}  // namespace rnnfast

// The forward ops of GRU by their schemas, whatever computes them.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "bindings/layer.h"
#include "bindings/string.h"

namespace rnnfast {

struct GruCall {
  const char* op;
  const Tensor &input, &h_0, &weight_ih, &weight_hh;
  const OptionalTensor &bias_ih, &bias_hh, &batch_sizes;
  bool reset_after, batch_first, reverse;
  const std::string& precision;
  int64_t packed = 0;

  Layer layer() const {
    return Layer(op, 3, input, h_0, weight_ih, weight_hh, bias_ih, bias_hh, std::nullopt,
                 batch_sizes, batch_first);
  }
};

// Where they are not kept, `gates` are some other tensor and `states` are empty.
struct GruResults {
  Tensor output, h_n, gates, states;
};

// run(call, whether to keep the gates) gives GruResults.
template <GruResults (*run)(const GruCall&, bool)>
struct GruOps {
  static std::tuple<Tensor, Tensor, Tensor, Tensor> gru(Tensor input, Tensor h_0, Tensor weight_ih,
                                                        Tensor weight_hh, OptionalTensor bias_ih,
                                                        OptionalTensor bias_hh,
                                                        OptionalTensor batch_sizes,
                                                        bool reset_after, bool batch_first,
                                                        bool reverse, String precision) {
    const GruResults r = run({"rnnfast::gru", input, h_0, weight_ih, weight_hh, bias_ih, bias_hh,
                              batch_sizes, reset_after, batch_first, reverse, precision},
                             true);
    return {r.output, r.h_n, r.gates, r.states};
  }

  static std::tuple<Tensor, Tensor> inference(Tensor input, Tensor h_0, Tensor weight_ih,
                                              Tensor weight_hh, OptionalTensor bias_ih,
                                              OptionalTensor bias_hh, OptionalTensor batch_sizes,
                                              bool reset_after, bool batch_first, bool reverse,
                                              String precision, int64_t packed) {
    const GruResults r =
        run({"rnnfast::gru_inference", input, h_0, weight_ih, weight_hh, bias_ih, bias_hh,
             batch_sizes, reset_after, batch_first, reverse, precision, packed},
            false);
    return {r.output, r.h_n};
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("gru", TORCH_BOX(&GruOps::gru));
    m.impl("gru_inference", TORCH_BOX(&GruOps::inference));
  }
};

}  // namespace rnnfast

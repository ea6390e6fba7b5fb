// The forward ops of LSTM by their schemas, whatever computes them.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "bindings/layer.h"
#include "bindings/string.h"

namespace rnnfast {

struct LstmCall {
  const char* op;
  const Tensor &input, &h_0, &c_0, &weight_ih, &weight_hh;
  const OptionalTensor &bias_ih, &bias_hh, &weight_hr, &batch_sizes;
  bool batch_first, reverse;
  const std::string& precision;
  int64_t packed = 0;

  Layer layer() const {
    return Layer(op, 4, input, h_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, batch_sizes,
                 batch_first);
  }
};

// What an op keeps of every step; what it does not is some other tensor, or empty.
enum class LstmKeep { nothing, cells, all };

struct LstmResults {
  Tensor output, h_n, c_n, cells, gates, states;
};

// run(call, what to keep) gives LstmResults.
template <LstmResults (*run)(const LstmCall&, LstmKeep)>
struct LstmOps {
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm(
      Tensor input, Tensor h_0, Tensor c_0, Tensor weight_ih, Tensor weight_hh,
      OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor weight_hr,
      OptionalTensor batch_sizes, bool batch_first, bool reverse, String precision) {
    const LstmResults r = run({"rnnfast::lstm", input, h_0, c_0, weight_ih, weight_hh, bias_ih,
                               bias_hh, weight_hr, batch_sizes, batch_first, reverse, precision},
                              LstmKeep::all);
    return {r.output, r.h_n, r.c_n, r.cells, r.gates, r.states};
  }

  static std::tuple<Tensor, Tensor, Tensor> inference(
      Tensor input, Tensor h_0, Tensor c_0, Tensor weight_ih, Tensor weight_hh,
      OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor weight_hr,
      OptionalTensor batch_sizes, bool batch_first, bool reverse, String precision,
      int64_t packed) {
    const LstmResults r =
        run({"rnnfast::lstm_inference", input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh,
             weight_hr, batch_sizes, batch_first, reverse, precision, packed},
            LstmKeep::nothing);
    return {r.output, r.h_n, r.c_n};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> cells(
      Tensor input, Tensor h_0, Tensor c_0, Tensor weight_ih, Tensor weight_hh,
      OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor weight_hr,
      OptionalTensor batch_sizes, bool batch_first, bool reverse, String precision) {
    const LstmResults r =
        run({"rnnfast::lstm_cells", input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh,
             weight_hr, batch_sizes, batch_first, reverse, precision},
            LstmKeep::cells);
    return {r.output, r.h_n, r.c_n, r.cells};
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("lstm", TORCH_BOX(&LstmOps::lstm));
    m.impl("lstm_inference", TORCH_BOX(&LstmOps::inference));
    m.impl("lstm_cells", TORCH_BOX(&LstmOps::cells));
  }
};

}  // namespace rnnfast

// The plain RNN's nonlinearity by torch's name.
#pragma once

#include <string>

#include "bindings/layer.h"

namespace rnnfast {

inline bool is_relu(const char* op, const std::string& nonlinearity) {
  if (nonlinearity != "tanh" && nonlinearity != "relu")
    fail(op, ": nonlinearity must be 'tanh' or 'relu', but got '", nonlinearity, "'");
  return nonlinearity == "relu";
}

}  // namespace rnnfast

// In what type kernels find tensors of a dtype.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "storage.h"

namespace rnnfast {

inline Storage storage_of(torch::headeronly::ScalarType dtype) {
  switch (dtype) {
    case torch::headeronly::ScalarType::Half:
      return Storage::float16;
    case torch::headeronly::ScalarType::BFloat16:
      return Storage::bfloat16;
    default:
      return Storage::own;
  }
}

}  // namespace rnnfast

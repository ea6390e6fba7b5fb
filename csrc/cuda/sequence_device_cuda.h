// What plan_sequence wants to know of the current device. The answer does not change while the
// process lives.
#pragma once

#include <cuda_runtime.h>

#include "cuda/sequence_plan.h"

namespace rnnfast {

inline cudaError_t sequence_device_cuda(SequenceDevice* device) {
  const struct {
    int32_t* value;
    cudaDeviceAttr attribute;
  } wanted[] = {{&device->multiprocessors, cudaDevAttrMultiProcessorCount},
                {&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                {&device->registers, cudaDevAttrMaxRegistersPerBlock},
                {&device->cooperative, cudaDevAttrCooperativeLaunch}};
  int number;
  cudaError_t error = cudaGetDevice(&number);
  for (const auto& one : wanted) {
    if (error != cudaSuccess) break;
    error = cudaDeviceGetAttribute(one.value, one.attribute, number);
  }
  return error;
}

}  // namespace rnnfast

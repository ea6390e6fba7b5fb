// What rnnfast._C lends to rnnfast._eager, which is linked apart: the kernels of the ISA in use,
// and a Runtime to call them with. Passed through Python as a capsule of this name.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cpu_kernels.h"

namespace rnnfast {

enum class PackedCell { lstm, gru, gru_reset_before, rnn };

// What packed weights were made of: address and version of each tensor. As long as both are as they
// were, so are its elements.
struct PackedFrom {
  PackedCell cell;
  std::vector<std::pair<uintptr_t, int64_t>> tensors;
};

constexpr const char* kKernelAccess = "rnnfast.kernel_access";

struct KernelAccess {
  const CpuIsa* (*isa)();
  // Calls body(runtime, context) with a Runtime that lives as long as the call.
  void (*with_runtime)(void (*body)(const Runtime*, void*), void* context);
  // For args.packed: the weights of that number, where they are these kernels' and were made of
  // just this. Null otherwise.
  std::shared_ptr<const void> (*packed)(int64_t id, const CpuKernels& kernels,
                                        const PackedFrom& from);
};

}  // namespace rnnfast

// What rnnfast._C lends to rnnfast._eager, which is linked apart: the kernels of the ISA in use,
// and a Runtime to call them with. Passed through Python as a capsule of this name.
#pragma once

#include "cpu_kernels.h"

namespace rnnfast {

constexpr const char* kKernelAccess = "rnnfast.kernel_access";

struct KernelAccess {
  const CpuIsa* (*isa)();
  // Calls body(runtime, context) with a Runtime that lives as long as the call.
  void (*with_runtime)(void (*body)(const Runtime*, void*), void* context);
};

}  // namespace rnnfast

// The CPU kernels compiled for the baseline of the architecture: SSE2 on x86-64, NEON on aarch64.
#include "cpu/isa_table.h"
#include "cpu/quantized_kernels.h"

RNNFAST_DEFINE_ISA(baseline)

// The CPU kernels compiled for AVX2 with FMA.
#include "cpu/isa_table.h"
#include "cpu/quantized_kernels.h"

RNNFAST_DEFINE_ISA(avx2)

// The CPU kernels compiled for AVX-512 (F, DQ, BW, VL).
#include "cpu/isa_table.h"
#include "cpu/quantized_kernels.h"

RNNFAST_DEFINE_ISA(avx512)

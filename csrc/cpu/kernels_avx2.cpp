// The CPU kernels compiled for AVX2 with FMA.
#include "cpu/isa_table.h"

RNNFAST_DEFINE_ISA(avx2)

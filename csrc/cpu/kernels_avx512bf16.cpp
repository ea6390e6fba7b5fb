// The CPU kernels compiled for AVX-512 (F, DQ, BW, VL) and AVX512-BF16: products of operands in
// bfloat16. Only they; all else is kernels_avx512.cpp's.
#include "cpu/isa_table.h"

const CpuBfloat16* rnnfast::cpu_bfloat16_avx512() {
  static constexpr CpuBfloat16 table = {kernels_of<Bf16>(), calls};
  return &table;
}

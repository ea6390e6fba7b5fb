// __nv_bfloat16 of <cuda_bf16.h>, on the CPU.
#pragma once

#include <stdint.h>
#include <string.h>

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t word = uint32_t{x.bits} << 16;
  float result;
  memcpy(&result, &word, sizeof(result));
  return result;
}
inline __nv_bfloat16 __float2bfloat16(float x) {
  uint32_t word;
  memcpy(&word, &x, sizeof(word));
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16)};  // to nearest even
}

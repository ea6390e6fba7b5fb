// What the sequence kernels ask of the hardware and no C++ function gives: dynamic shared memory,
// asynchronous copies, rounding to TF32, tensor cores, and the two halves of a barrier between
// blocks.
//
// Needs compute capability 8.0. The tests have a header of this name with the same functions in
// plain C++, so nothing but such functions stands here.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "cuda/tf32.h"

namespace rnnfast {
namespace {

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

// Starts copying 16 bytes, both addresses aligned to as many, past the first-level cache: that one
// does not see what other multiprocessors write.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

// Closes a group of this thread's copies, which may be empty.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `pending` of this thread's groups are on their way.
template <int pending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// To nearest, ties away from zero: the rounding that every device with TF32 has.
__device__ __forceinline__ Tf32 round_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return {__uint_as_float(bits)};
}

// sum += a b, 16 x 16 by 16 x 8, by the 32 lanes of a warp. With r = lane / 4 and q = 2 (lane % 4),
// a lane holds, two neighbours over k to a word and the lower one in the lower half,
//   a    rows r, r + 8, r, r + 8, at k = q, q, q + 8, q + 8
//   b    column r, at k = q, q + 8
//   sum  row r columns q, q + 1, then row r + 8 columns q, q + 1
__device__ __forceinline__ void multiply_add(__nv_bfloat16, float (&sum)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply_add(__half, float (&sum)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same, 16 x 8 by 8 x 8, with one TF32 to a word and q = lane % 4:
//   a    rows r, r + 8, r, r + 8, at k = q, q, q + 4, q + 4
//   b    column r, at k = q, q + 4
__device__ __forceinline__ void multiply_add(Tf32, float (&sum)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// One block's arrival, by one of its threads: all that the block wrote before the __syncthreads()
// before this is seen by whoever has waited for the count.
__device__ __forceinline__ void arrive(uint32_t* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

// Waits until the counter, which only grows and may wrap around, has reached `count`.
__device__ __forceinline__ void wait_for(const uint32_t* counter, uint32_t count) {
  constexpr int kEagerPolls = 64;  // then at a pace that leaves the memory to those who work
  for (int polls = 0;; ++polls) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    if (static_cast<int32_t>(value - count) >= 0) return;
    if (polls >= kEagerPolls) __nanosleep(100);
  }
}

}  // namespace
}  // namespace rnnfast

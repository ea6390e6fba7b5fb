// csrc/cuda/intrinsics.cuh in plain C++, for the fibers of cuda_runtime.h: the same functions,
// found before it by the order of include folders.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace rnnfast {
namespace {

inline unsigned char* dynamic_shared() {
  return reinterpret_cast<unsigned char*>(current_block->shared.data());
}

inline void copy_async(void* shared, const void* global) {
  current_fiber().copies.back().push_back({shared, global});
}
inline void commit_copies() { current_fiber().copies.emplace_back(); }
template <int pending>
void wait_copies() {
  auto& groups = current_fiber().copies;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const Copy& copy : groups.front()) memcpy(copy.to, copy.from, 16);
    groups.erase(groups.begin());
  }
}

template <class P>
float half_of(uint32_t word, int upper) {
  const uint16_t bits = static_cast<uint16_t>(upper ? word >> 16 : word);
  P value;
  memcpy(&value, &bits, sizeof(value));
  if constexpr (std::is_same<P, __half>::value) {
    return __half2float(value);
  } else {
    return __bfloat162float(value);
  }
}

template <class P>
void multiply_add(P, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Warp& warp = current_warp();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  memcpy(warp.a[lane], a, sizeof(a));
  memcpy(warp.b[lane], b, sizeof(b));
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int part = k / 8, owner = k % 8 / 2;
      const uint32_t a_word = warp.a[row % 8 * 4 + owner][part * 2 + row / 8];
      const uint32_t b_word = warp.b[column * 4 + owner][part];
      sum[i] += half_of<P>(a_word, k % 2) * half_of<P>(b_word, k % 2);
    }
  }
  __syncwarp();
}

inline void arrive(uint32_t* counter) {
  ++*counter;
  ++progress;
}
inline void wait_for(const uint32_t* counter, uint32_t count) {
  if (!device.grid_barrier) return;
  stall_until([=] { return static_cast<int32_t>(*counter - count) >= 0; });
}

}  // namespace
}  // namespace rnnfast

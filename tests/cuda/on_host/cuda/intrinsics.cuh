// csrc/cuda/intrinsics.cuh in plain C++, for the fibers of cuda_runtime.h: the same functions,
// found before it by the order of include folders.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/tf32.h"

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

inline Tf32 round_to_tf32(float x) {
  uint32_t word;
  memcpy(&word, &x, sizeof(word));
  if (isfinite(x)) word += 0x1000;  // half of the last bit kept; the sign stands apart
  word &= ~uint32_t{0x1fff};
  Tf32 result;
  memcpy(&result, &word, sizeof(result));
  return result;
}

inline float to_float(__half x) { return __half2float(x); }
inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float to_float(Tf32 x) { return x.value; }

// The product of all lanes' words: one P in each, or two neighbours over k.
template <class P>
void multiply_add(P, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  constexpr int kInWord = sizeof(uint32_t) / sizeof(P);
  const auto element = [](const uint32_t& word, int i) {
    P value;
    memcpy(&value, reinterpret_cast<const char*>(&word) + i * sizeof(P), sizeof(P));
    return to_float(value);
  };
  Warp& warp = current_warp();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  memcpy(warp.a[lane], a, sizeof(a));
  memcpy(warp.b[lane], b, sizeof(b));
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 8 * kInWord; ++k) {
      const int part = k / (4 * kInWord), owner = k % (4 * kInWord) / kInWord;
      const uint32_t& a_word = warp.a[row % 8 * 4 + owner][part * 2 + row / 8];
      const uint32_t& b_word = warp.b[column * 4 + owner][part];
      sum[i] += element(a_word, k % kInWord) * element(b_word, k % kInWord);
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

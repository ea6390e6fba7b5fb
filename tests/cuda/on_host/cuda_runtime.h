// The little of <cuda_runtime.h> that csrc/cuda uses, on the CPU: the threads of a block are fibers
// of one thread, which run in turn from barrier to barrier; shared memory is a static array; blocks
// follow each other.
//
// What it can show is that indices, tails, strides, barriers and maths are right. It says nothing
// about a GPU: not its memory model, its limits, its rounding in exp and tanh, nor speed.
#pragma once

#include <math.h>
#include <stdint.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
typedef struct CUstream_st* cudaStream_t;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

static dim3 blockIdx, threadIdx;

struct Fiber {
  ucontext_t context;
  bool done;
};
static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static std::function<void()> fiber_body;

inline void __syncthreads() { swapcontext(&fibers[threadIdx.x].context, &scheduler); }

inline void run_fiber() {
  fiber_body();
  fibers[threadIdx.x].done = true;  // and on to uc_link, the scheduler
}

template <class Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Args),
                               const Args& args) {
  constexpr size_t kStackBytes = 64 * 1024;
  const unsigned threads = config->blockDim.x;
  const std::unique_ptr<char[]> stacks(new char[threads * kStackBytes]);
  fibers.resize(threads);
  fiber_body = [=] { kernel(args); };
  for (unsigned block = 0; block < config->gridDim.x; ++block) {
    blockIdx = dim3(block);
    for (unsigned i = 0; i < threads; ++i) {
      fibers[i].done = false;
      getcontext(&fibers[i].context);
      fibers[i].context.uc_stack.ss_sp = stacks.get() + i * kStackBytes;
      fibers[i].context.uc_stack.ss_size = kStackBytes;
      fibers[i].context.uc_link = &scheduler;
      makecontext(&fibers[i].context, run_fiber, 0);
    }
    for (bool running = true; running;) {
      for (unsigned i = 0; i < threads; ++i) {
        threadIdx = dim3(i);
        if (!fibers[i].done) swapcontext(&scheduler, &fibers[i].context);
      }
      running = false;
      for (const Fiber& fiber : fibers) running = running || !fiber.done;
    }
  }
  return cudaSuccess;
}

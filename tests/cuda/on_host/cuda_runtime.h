// The little of <cuda_runtime.h> that csrc/cuda uses, on the CPU: every thread of a block is a
// fiber of one thread, and runs until it has to wait for others. Blocks follow each other; those of
// a cooperative grid run in turn, each as far as it gets without the others, so that a missing wait
// between blocks shows. Static shared memory is a static array, which ordinary launches alone may
// use; dynamic shared memory is a block's own. A grid in which everybody waits is an error.
//
// What it can show is that indices, tails, strides, barriers and maths are right. It says nothing
// about a GPU: not its memory model, its limits, its rounding in exp and tanh, nor speed.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__ static
#define __launch_bounds__(...)

using std::min;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720
};
typedef struct CUstream_st* cudaStream_t;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float4 {
  float x, y, z, w;
};
struct uint4 {
  uint32_t x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- threads

struct Copy {
  void* to;
  const void* from;
};
struct Fiber {
  ucontext_t context;  // its start; from then on setjmp, which makes no system call
  jmp_buf place;
  bool started = false, done = false;
  // Asynchronous copies, by group, the open one last: done as late as they may be.
  std::vector<std::vector<Copy>> copies{1};
};
struct Meeting {
  unsigned arrived = 0, turn = 0;
};
struct Warp {
  Meeting meeting;
  uint32_t a[32][4], b[32][2];  // the operands of a collective product
};
struct Block {
  unsigned index, running;
  std::vector<Fiber> fibers;
  std::unique_ptr<char[]> stacks;
  Meeting meeting;
  std::vector<Warp> warps;
  std::vector<float4> shared;
};

static dim3 blockIdx, threadIdx;
static Block* current_block;
static jmp_buf scheduler;
static std::function<void()> fiber_body;
static uint64_t progress;  // counts what brings the grid on

inline Fiber& current_fiber() { return current_block->fibers[threadIdx.x]; }

template <class Ready>
void stall_until(Ready ready) {
  ++progress;
  while (!ready()) {
    if (_setjmp(current_fiber().place) == 0) _longjmp(scheduler, 1);
  }
}

inline void meet(Meeting& meeting, unsigned count) {
  const unsigned turn = meeting.turn;
  if (++meeting.arrived == count) {
    meeting.arrived = 0;
    ++meeting.turn;
  }
  stall_until([&] { return meeting.turn != turn; });
}

inline Warp& current_warp() { return current_block->warps[threadIdx.x / 32]; }
inline void __syncthreads() {
  meet(current_block->meeting, static_cast<unsigned>(current_block->fibers.size()));
}
inline void __syncwarp() { meet(current_warp().meeting, 32); }

inline void run_fiber() {
  fiber_body();
  current_fiber().done = true;
  --current_block->running;
  ++progress;
  _longjmp(scheduler, 1);
}

// Runs the current fiber until it waits or ends.
__attribute__((noinline)) inline void resume() {
  if (_setjmp(scheduler) != 0) return;
  Fiber& fiber = current_fiber();
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

inline void start(Block& block, unsigned index, unsigned threads, size_t shared_bytes) {
  constexpr size_t kStackBytes = 64 * 1024;
  block.index = index;
  block.running = threads;
  block.fibers = std::vector<Fiber>(threads);
  block.stacks.reset(new char[threads * kStackBytes]);
  block.warps = std::vector<Warp>((threads + 31) / 32);
  // Not a number, whatever it is read as.
  block.shared.assign(shared_bytes / sizeof(float4) + 1, {NAN, NAN, NAN, NAN});
  memset(block.shared.data(), 0xff, block.shared.size() * sizeof(float4));
  for (unsigned i = 0; i < threads; ++i) {
    ucontext_t& context = block.fibers[i].context;
    getcontext(&context);
    context.uc_stack.ss_sp = block.stacks.get() + i * kStackBytes;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, run_fiber, 0);
  }
}

// Runs a block as far as it gets on its own.
inline void run(Block& block) {
  current_block = &block;
  blockIdx = dim3(block.index);
  for (uint64_t before = progress - 1; block.running > 0 && before != progress;) {
    before = progress;
    for (unsigned i = 0; i < block.fibers.size(); ++i) {
      threadIdx = dim3(i);
      if (!block.fibers[i].done) resume();
    }
  }
}

// ---- the device and what is asked of it

struct Device {
  int multiprocessors = 16, shared_bytes = 232448, cooperative = 1;
  int grid_barrier = 1;  // 0 leaves the wait between blocks out, to show that it is needed
  int cooperative_launches = 0;
  int shared_allowed = 0;  // of the kernel that was last given a limit
};
inline Device device;

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxRegistersPerBlock
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }
inline cudaError_t cudaGetDevice(int* number) {
  *number = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = device.cooperative;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_bytes;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
      *value = 65536;
      break;
  }
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  if (bytes > device.shared_bytes) return cudaErrorInvalidValue;
  device.shared_allowed = bytes;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int,
                                                          size_t shared_bytes) {
  *blocks = shared_bytes <= static_cast<size_t>(device.shared_bytes);
  return cudaSuccess;
}

inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  memset(memory, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                                     size_t width, size_t rows, cudaMemcpyKind, cudaStream_t) {
  for (size_t i = 0; i < rows; ++i) {
    memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch,
           width);
  }
  return cudaSuccess;
}

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               const Args&... args) {
  const unsigned count = config->gridDim.x, threads = config->blockDim.x;
  const bool cooperative = config->numAttrs > 0 && config->attrs[0].val.cooperative;
  if (cooperative && count > static_cast<unsigned>(device.multiprocessors)) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  device.cooperative_launches += cooperative;
  fiber_body = [=] { kernel(args...); };
  std::vector<Block> blocks(cooperative ? count : 1);
  for (unsigned first = 0; first < count; first += static_cast<unsigned>(blocks.size())) {
    unsigned index = first;
    for (Block& block : blocks) start(block, index++, threads, config->dynamicSmemBytes);
    for (uint64_t before = progress - 1; before != progress;) {
      before = progress;
      for (Block& block : blocks) run(block);
    }
    for (const Block& block : blocks) {
      if (block.running > 0) return cudaErrorLaunchFailure;
    }
  }
  return cudaSuccess;
}

// What a call on the CPU takes beside its tensors: the kernels of the ISA in use, and a Runtime of
// torch's thread pool and scratch memory that is reused.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "bindings/layer.h"
#include "cpu_kernels.h"
#include "runtime.h"

namespace rnnfast {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Block = std::unique_ptr<void, Free>;

// Uninitialised memory, aligned to 64. Throws std::bad_alloc.
Block aligned_block(size_t bytes);

// Memory that a kernel is given to keep, as long as this lives.
class KeptMemory {
 public:
  // `like`, but that what it allocates is kept here.
  Runtime runtime(const Runtime& like);
  size_t bytes() const { return bytes_; }

 private:
  std::vector<Block> blocks_;
  size_t bytes_ = 0;
};

// The kernels for an input of that dtype on the CPU. With precision "bf16", those with products of
// operands rounded to bfloat16, where the CPU has them and there is more than a `single` step.
const CpuKernels& cpu_kernels(const char* op, const Tensor& input, const std::string& precision,
                              bool single);
inline const CpuKernels& cpu_kernels(const Layer& layer, const std::string& precision) {
  return cpu_kernels(layer.op, layer.input.tensor, precision,
                     layer.seq_len == 1 && !layer.batch_sizes);
}

// One kernel call's Runtime. Scratch belongs to the calling thread and is kept from call to call
// (fresh pages cost more than the arithmetic on small shapes); one call at a time in a thread.
class Host {
 public:
  Host();
  ~Host();
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  const Runtime* runtime() const { return &runtime_; }

 private:
  Runtime runtime_;
};

}  // namespace rnnfast

// Serves what kernels ask of a Runtime: torch's thread pool and scratch memory that is reused.
#pragma once

#include <cstdlib>
#include <memory>

#include "runtime.h"

namespace rnnfast {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Block = std::unique_ptr<void, Free>;

// Uninitialised memory, aligned to 64. Throws std::bad_alloc.
Block aligned_block(size_t bytes);

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

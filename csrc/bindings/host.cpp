#include "bindings/host.h"

#include <pthread.h>
#include <sys/mman.h>
#include <torch/csrc/stable/ops.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <new>
#include <thread>
#include <vector>

namespace rnnfast {
namespace {

// A forked child has none of its parent's pool threads; OpenMP runtimes may wait for them for ever.
std::atomic<bool> forked{false};
const int fork_watch = pthread_atfork(nullptr, nullptr, [] { forked = true; });

struct Caches {
  int64_t level_2 = 1 << 20, level_3 = 32 << 20;  // where the system does not tell

  Caches() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes > 0) level_2 = bytes;
#endif
    // What sysconf calls level 3 may be that of all the processor, of which a core has a part.
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
    int64_t kibibytes = 0;
    if (file >> kibibytes && file.get() == 'K' && kibibytes > 0) level_3 = kibibytes << 10;
  }
};

// Bump allocation from one block that is as large as the largest call so far needed; what does not
// fit the block during a call stands beside it until the call ends.
class Scratch {
 public:
  void* allocate(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    needed_ += bytes;
    if (used_ + bytes <= capacity_) {
      void* p = static_cast<char*>(block_.get()) + used_;
      used_ += bytes;
      return p;
    }
    beside_.push_back(aligned_block(bytes ? bytes : 64));
    return beside_.back().get();
  }

  void reset() {
    beside_.clear();
    if (needed_ > capacity_ && needed_ <= kKept) {
      block_.reset();
      capacity_ = 0;
      block_ = aligned_block(needed_);
      capacity_ = needed_;
    }
    used_ = needed_ = 0;
  }

 private:
  static constexpr size_t kKept = size_t{256} << 20;  // bytes; larger calls give theirs back
  Block block_;
  size_t capacity_ = 0, used_ = 0, needed_ = 0;
  std::vector<Block> beside_;
};

Scratch& scratch() {
  thread_local Scratch instance;
  return instance;
}

void run(const Runtime* runtime, int64_t tasks, void (*body)(void*, int64_t, int64_t),
         void* argument) {
  if (runtime->num_threads <= 1) return body(argument, 0, tasks);
  torch::stable::parallel_for(0, tasks, 1,
                              [&](int64_t begin, int64_t end) { body(argument, begin, end); });
}

void* allocate(const Runtime* runtime, size_t bytes) {
  return static_cast<Scratch*>(runtime->host)->allocate(bytes);
}

}  // namespace

const CpuKernels& cpu_kernels(const char* op, const Tensor& input, const std::string& name,
                              bool single) {
  const Precision precision = precision_of(op, name, input);
  if (precision != Precision::fp32 && precision != Precision::bf16)
    fail(op, ": precision must be 'fp32' or 'bf16' on the CPU, but got '", name, "'");
  const bool float64 = input.scalar_type() == torch::headeronly::ScalarType::Double;
  return kernels_of(cpu_isa(), float64, precision == Precision::bf16, single);
}

// Packed weights are read from end to end at every step: a large block asks for huge pages, over
// which the processor prefetches.
Block aligned_block(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const bool huge = bytes >= kHugePage;
  void* p = nullptr;
  if (posix_memalign(&p, huge ? kHugePage : 64, bytes) != 0) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (huge) madvise(p, bytes, MADV_HUGEPAGE);  // a wish: where it is not granted, nothing changes
#endif
  return Block(p);
}

Runtime KeptMemory::runtime(const Runtime& like) {
  Runtime keeping = like;
  keeping.host = this;
  keeping.allocate = [](const Runtime* runtime, size_t bytes) -> void* {
    KeptMemory* self = static_cast<KeptMemory*>(runtime->host);
    self->blocks_.push_back(aligned_block(bytes ? bytes : 64));
    self->bytes_ += bytes;
    return self->blocks_.back().get();
  };
  return keeping;
}

Host::Host() {
  static const Caches caches;
  runtime_.num_threads = forked ? 1 : torch::stable::get_num_threads();
  runtime_.cache_bytes = caches.level_2;
  runtime_.shared_cache_bytes = caches.level_3;
  runtime_.run = run;
  runtime_.yield = std::this_thread::yield;
  runtime_.allocate = allocate;
  runtime_.host = &scratch();
}

Host::~Host() {
  try {
    scratch().reset();
  } catch (const std::bad_alloc&) {
    // Nothing is kept, then: the next call allocates what it needs, or reports that it cannot.
  }
}

}  // namespace rnnfast

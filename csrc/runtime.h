// What a kernel may ask of its host: threads, scratch memory, and the size of a core's cache.
//
// Kernels know neither torch nor OpenMP. The bindings fill this struct once a call, from torch's
// thread pool (bindings/host.cpp); a test or another host may fill it otherwise.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct Runtime {
  // Most threads that run() will use. Work may be cut by it; bits of a result may not depend on it.
  int64_t num_threads;

  // Bytes of a core's private (level 2) cache: what a thread's slice of the weights should fit in.
  int64_t cache_bytes;
  // Bytes of the cache that the cores share (level 3).
  int64_t shared_cache_bytes;

  // Calls body(argument, begin, end) for disjoint ranges that cover [0, tasks), and returns when
  // all are done. Ranges may run one after another on one thread (nested call, one thread, forked
  // child), so a body never waits for another to begin.
  void (*run)(const struct Runtime* self, int64_t tasks,
              void (*body)(void* argument, int64_t begin, int64_t end), void* argument);

  // Lets another thread have the processor, if one wants it.
  void (*yield)(void);

  // Scratch memory of that many bytes, aligned to 64, uninitialised, valid until the kernel
  // returns. Never from inside run(). Throws std::bad_alloc.
  void* (*allocate)(const struct Runtime* self, size_t bytes);

  void* host;  // the host's own
};

// Chooses the ISA once, from what CPU and operating system support, and lets a caller force
// another.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "cpu_kernels.h"

namespace rnnfast {
namespace {

struct Choice {
  CpuIsa available[3];
  int count = 0;
  std::atomic<const CpuIsa*> current{nullptr};

  Choice() {
    available[count++] = *cpu_isa_baseline();
#if defined(__x86_64__)
    // These built-ins ask the operating system (XGETBV) too before they trust the CPU's word.
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
      available[count++] = *cpu_isa_avx2();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
      CpuIsa& avx512 = available[count++] = *cpu_isa_avx512();
      if (__builtin_cpu_supports("avx512bf16")) avx512.bfloat16 = cpu_bfloat16_avx512();
    }
#endif
    current = &available[capped(std::getenv("RNNFAST_ISA"))];
  }

  // Index of the strongest ISA not above the named one. A cap that is not available here caps at
  // the strongest below it; an unknown name is reported by the bindings, which see the variable
  // too.
  int capped(const char* cap) const {
    constexpr const char* order[] = {"baseline", "avx2", "avx512"};
    int allowed = 2;
    for (int i = 0; cap && i < 3; ++i)
      if (std::strcmp(cap, order[i]) == 0) allowed = i;
    int best = 0;
    for (int i = 0; i < count; ++i)
      for (int rank = 0; rank <= allowed; ++rank)
        if (std::strcmp(available[i].name, order[rank]) == 0) best = i;
    return best;
  }
};

Choice& choice() {
  static Choice instance;
  return instance;
}

}  // namespace

int cpu_isa_count() { return choice().count; }

const CpuIsa* cpu_isa_at(int index) { return &choice().available[index]; }

const CpuIsa* cpu_isa() { return choice().current.load(std::memory_order_relaxed); }

bool set_cpu_isa(const char* name) {
  for (int i = 0; i < choice().count; ++i)
    if (std::strcmp(choice().available[i].name, name) == 0) {
      choice().current.store(&choice().available[i], std::memory_order_relaxed);
      return true;
    }
  return false;
}

}  // namespace rnnfast

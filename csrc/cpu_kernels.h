// What a host calls on the CPU: one table of functions per ISA, and the choice among them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "gru.h"
#include "lstm.h"
#include "rnn.h"

// The kernels of one ISA for one dtype, float or double: the type behind every pointer of an args
// struct.
struct CpuKernels {
  void (*lstm_forward)(const Runtime* runtime, const LstmForward* args);
  void (*lstm_backward)(const Runtime* runtime, const LstmBackward* args);
  void (*gru_forward)(const Runtime* runtime, const GruForward* args);
  void (*gru_backward)(const Runtime* runtime, const GruBackward* args);
  void (*rnn_forward)(const Runtime* runtime, const RnnForward* args);
  void (*rnn_backward)(const Runtime* runtime, const RnnBackward* args);
  void (*sigmoid)(const void* x, void* y, int64_t count);
  void (*tanh)(const void* x, void* y, int64_t count);
};

struct CpuIsa {
  const char* name;
  CpuKernels float32, float64;
  // Kernel calls so far, counted in the ISA's own translation unit: the proof of what ran.
  uint64_t (*calls)();
};

namespace rnnfast {

// The ISAs that were compiled in and that CPU and operating system support, weakest first.
int cpu_isa_count();
const CpuIsa* cpu_isa_at(int index);

// The one in use: the strongest that the environment variable RNNFAST_ISA allows, or the last one
// set.
const CpuIsa* cpu_isa();

// By name; false where there is no such ISA on this machine.
bool set_cpu_isa(const char* name);

// Each defined by its own file; cpu/dispatch.cpp chooses among them.
const CpuIsa* cpu_isa_baseline();
const CpuIsa* cpu_isa_avx2();
const CpuIsa* cpu_isa_avx512();

}  // namespace rnnfast

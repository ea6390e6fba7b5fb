// What a host calls on the CPU: one table of functions per ISA, and the choice among them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "gru.h"
#include "linear_cross_entropy.h"
#include "lstm.h"
#include "quantized.h"
#include "rnn.h"
#include "stream.h"

// The kernels of one ISA for one dtype, float or double: the type behind every pointer of an args
// struct.
struct CpuKernels {
  void (*lstm_forward)(const Runtime* runtime, const LstmForward* args);
  void (*lstm_backward)(const Runtime* runtime, const LstmBackward* args);
  void (*gru_forward)(const Runtime* runtime, const GruForward* args);
  void (*gru_backward)(const Runtime* runtime, const GruBackward* args);
  void (*rnn_forward)(const Runtime* runtime, const RnnForward* args);
  void (*rnn_backward)(const Runtime* runtime, const RnnBackward* args);
  // Pack a layer's weights, for args.packed of forward calls: of args, only its sizes, weights and
  // biases are read, and the form of a GRU. What they return is this table's own, in memory from
  // runtime->allocate alone.
  void* (*lstm_pack)(const Runtime* runtime, const LstmForward* args);
  void* (*gru_pack)(const Runtime* runtime, const GruForward* args);
  void* (*rnn_pack)(const Runtime* runtime, const RnnForward* args);
  // Packs a layer; what it returns is this table's own, in memory from runtime->allocate alone.
  void* (*stream_layer)(const Runtime* keeping, const Runtime* scratch, const StreamLayer* args);
  void (*stream_step)(const Runtime* runtime, const StreamStep* args);
  void (*linear_cross_entropy)(const Runtime* runtime, const LinearCrossEntropy* args);
  void (*sigmoid)(const void* x, void* y, int64_t count);
  void (*tanh)(const void* x, void* y, int64_t count);
};

// The kernels for float tensors whose matrix products take both operands rounded to bfloat16 (to
// nearest, ties to even) and add up in float. All else is as in float32: states, gates, cells,
// biases, activations; and single steps, which pack nothing.
struct CpuBfloat16 {
  CpuKernels kernels;
  uint64_t (*calls)();
};

struct CpuIsa {
  const char* name;
  CpuKernels float32, float64;
  void (*quantized_forward)(const Runtime* runtime, const QuantizedForward* args);
  // Kernel calls so far, counted in the ISA's own translation unit: the proof of what ran.
  uint64_t (*calls)();
  // Null where ISA or CPU has no such products; float32 serves then.
  const CpuBfloat16* bfloat16;
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

// A table's kernels for one dtype. `bf16`: those with products of operands rounded to bfloat16,
// where the CPU has them and there is more than a `single` step.
inline const CpuKernels& kernels_of(const CpuIsa* isa, bool float64, bool bf16, bool single) {
  if (float64) return isa->float64;
  return bf16 && isa->bfloat16 && !single ? isa->bfloat16->kernels : isa->float32;
}

// Each defined by its own file; cpu/dispatch.cpp chooses among them.
const CpuIsa* cpu_isa_baseline();
const CpuIsa* cpu_isa_avx2();
const CpuIsa* cpu_isa_avx512();
const CpuBfloat16* cpu_bfloat16_avx512();

}  // namespace rnnfast

// The sequence kernels and launchers of csrc/cuda under plain C names for ctypes: compiled for the
// CPU by way of the headers beside this file, or by nvcc as they are. A launch returns when it has
// run.
#include "cuda/gru_sequence_cuda.cu"
#include "cuda/gru_step_cuda.cu"
#include "cuda/lstm_sequence_cuda.cu"
#include "cuda/lstm_step_cuda.cu"
#include "cuda/rnn_sequence_cuda.cu"
#include "cuda/rnn_step_cuda.cu"
#include "cuda/sequence_device_cuda.h"

// Also from a library that hides the rest.
#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void plan(const rnnfast::SequenceProblem* problem, const rnnfast::SequenceDevice* on,
                   rnnfast::SequencePlan* plan) {
  *plan = rnnfast::plan_sequence(*problem, *on);
}

EXPORTED int current_device(rnnfast::SequenceDevice* device) {
  return rnnfast::sequence_device_cuda(device);
}

#ifndef __CUDACC__
EXPORTED void set_device(int multiprocessors, int shared_bytes, int cooperative, int grid_barrier) {
  device = {multiprocessors, shared_bytes, cooperative, grid_barrier};
}

EXPORTED int cooperative_launches() { return device.cooperative_launches; }

EXPORTED int shared_allowed() { return device.shared_allowed; }
#endif

#define EXPORT_FOR(launcher, Args, P, suffix)                                       \
  EXPORTED int launcher##_##suffix(const rnnfast::Args* args, int recurrences,      \
                                   const rnnfast::SequencePlan* plan, void* work) { \
    return rnnfast::sequence_cuda<P>(args, recurrences, plan, work, nullptr);       \
  }
#define EXPORT(launcher, Args)                    \
  EXPORT_FOR(launcher, Args, float, float32)      \
  EXPORT_FOR(launcher, Args, double, float64)     \
  EXPORT_FOR(launcher, Args, rnnfast::Tf32, tf32) \
  EXPORT_FOR(launcher, Args, __half, float16)     \
  EXPORT_FOR(launcher, Args, __nv_bfloat16, bfloat16)

EXPORT(lstm_sequence, LstmSequenceCuda)
EXPORT(lstm_sequence_backward, LstmSequenceBackwardCuda)
EXPORT(gru_sequence, GruSequenceCuda)
EXPORT(gru_sequence_backward, GruSequenceBackwardCuda)
EXPORT(rnn_sequence, RnnSequenceCuda)
EXPORT(rnn_sequence_backward, RnnSequenceBackwardCuda)

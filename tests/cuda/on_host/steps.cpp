// The step kernels and launchers of csrc/cuda compiled for the CPU by way of the cuda_runtime.h
// beside this file, under plain C names for ctypes.
#include "cuda/gru_step_cuda.cu"
#include "cuda/lstm_step_cuda.cu"
#include "cuda/rnn_step_cuda.cu"

#define EXPORT(launcher, Args)                                  \
  extern "C" int launcher##_float(const rnnfast::Args* args) {  \
    return rnnfast::launcher##_cuda<float>(args, nullptr);      \
  }                                                             \
  extern "C" int launcher##_double(const rnnfast::Args* args) { \
    return rnnfast::launcher##_cuda<double>(args, nullptr);     \
  }

EXPORT(lstm_step, LstmStepCuda)
EXPORT(lstm_step_backward, LstmStepBackwardCuda)
EXPORT(gru_step, GruStepCuda)
EXPORT(gru_step_backward, GruStepBackwardCuda)
EXPORT(gru_reset_backward, GruStepBackwardCuda)
EXPORT(rnn_step, RnnStepCuda)
EXPORT(rnn_step_backward, RnnStepBackwardCuda)

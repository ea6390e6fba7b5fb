// Weights of layers and cells that stay packed between calls, for inference.
//
// They are known by a number that is never given twice; rnnfast.prepack holds it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "bindings/host.h"
#include "bindings/kernel_access.h"

namespace rnnfast {

struct PackedWeights {
  int64_t input_size, hidden_size, proj_size;
  const CpuKernels* kernels;  // whose they are
  PackedFrom from;
  KeptMemory memory;
  const void* packed;
};

// Packs weight_ih, weight_hh, bias_ih, bias_hh and weight_hr, null for what a layer has not, for
// the ISA in use. Gives their number.
int64_t pack_weights(const std::array<const void*, 5>& weights, int64_t input_size,
                     int64_t hidden_size, int64_t proj_size, bool float64, Storage storage,
                     bool bf16, PackedFrom from);
// A call that uses them is not disturbed.
void drop_packed_weights(int64_t id);

// Null where there are none of that number.
std::shared_ptr<const PackedWeights> packed_weights(int64_t id);
// As KernelAccess::packed.
std::shared_ptr<const void> packed_if_same(int64_t id, const CpuKernels& kernels,
                                           const PackedFrom& from);

// Sets args.packed of a call of an op, and gives what has to live as long as the call. With id 0
// nothing is set; nor where they are other kernels', since ISA or precision has changed: the call
// packs then.
template <class Args>
std::shared_ptr<const PackedWeights> use_packed(const char* op, int64_t id, PackedCell cell,
                                                int64_t proj_size, const CpuKernels& kernels,
                                                Args& args) {
  if (id == 0) return nullptr;
  std::shared_ptr<const PackedWeights> weights = packed_weights(id);
  if (!weights)
    fail(op, ": packed_weights must be 0 or the number of packed weights, but got ", id);
  if (weights->from.cell != cell || weights->input_size != args.input_size ||
      weights->hidden_size != args.hidden_size || weights->proj_size != proj_size)
    fail(op, ": packed_weights must be of a layer of the same kind and sizes, but number ", id,
         " is not");
  if (weights->kernels == &kernels) args.packed = weights->packed;
  return weights;
}

}  // namespace rnnfast

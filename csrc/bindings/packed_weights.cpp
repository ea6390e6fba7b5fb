#include "bindings/packed_weights.h"

#include <mutex>
#include <unordered_map>
#include <utility>

namespace rnnfast {
namespace {

struct Registry {
  std::mutex mutex;
  std::unordered_map<int64_t, std::shared_ptr<const PackedWeights>> weights;
  int64_t last = 0;
};

// Never destroyed: modules may be dropped after the process has begun to destroy what is static.
Registry& registry() {
  static Registry* const instance = new Registry;
  return *instance;
}

template <class Args>
Args arguments(const PackedWeights& of, const std::array<const void*, 5>& weights,
               Storage storage) {
  Args args{};
  args.storage = storage;
  args.input_size = of.input_size;
  args.hidden_size = of.hidden_size;
  args.weight_ih = weights[0];
  args.weight_hh = weights[1];
  args.bias_ih = weights[2];
  args.bias_hh = weights[3];
  return args;
}

const void* pack(PackedWeights& of, const std::array<const void*, 5>& weights, Storage storage) {
  const Host host;
  const Runtime keeping = of.memory.runtime(*host.runtime());
  switch (of.from.cell) {
    case PackedCell::lstm: {
      auto args = arguments<LstmForward>(of, weights, storage);
      args.proj_size = of.proj_size;
      args.weight_hr = weights[4];
      return of.kernels->lstm_pack(&keeping, &args);
    }
    case PackedCell::gru:
    case PackedCell::gru_reset_before: {
      auto args = arguments<GruForward>(of, weights, storage);
      args.reset_after = of.from.cell == PackedCell::gru;
      return of.kernels->gru_pack(&keeping, &args);
    }
    case PackedCell::rnn:
      break;
  }
  const auto args = arguments<RnnForward>(of, weights, storage);
  return of.kernels->rnn_pack(&keeping, &args);
}

}  // namespace

int64_t pack_weights(const std::array<const void*, 5>& weights, int64_t input_size,
                     int64_t hidden_size, int64_t proj_size, bool float64, Storage storage,
                     bool bf16, PackedFrom from) {
  const auto made = std::make_shared<PackedWeights>();
  made->input_size = input_size;
  made->hidden_size = hidden_size;
  made->proj_size = proj_size;
  made->kernels = &kernels_of(cpu_isa(), float64, bf16, false);
  made->from = std::move(from);
  made->packed = pack(*made, weights, storage);
  const std::lock_guard lock(registry().mutex);
  const int64_t id = ++registry().last;
  registry().weights[id] = made;
  return id;
}

void drop_packed_weights(int64_t id) {
  std::shared_ptr<const PackedWeights> dropped;  // freed after the lock is
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().weights.find(id);
  if (found == registry().weights.end()) return;
  dropped = std::move(found->second);
  registry().weights.erase(found);
}

std::shared_ptr<const PackedWeights> packed_weights(int64_t id) {
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().weights.find(id);
  return found == registry().weights.end() ? nullptr : found->second;
}

std::shared_ptr<const void> packed_if_same(int64_t id, const CpuKernels& kernels,
                                           const PackedFrom& from) {
  const auto weights = packed_weights(id);
  if (!weights || weights->kernels != &kernels || weights->from.cell != from.cell ||
      weights->from.tensors != from.tensors)
    return nullptr;
  return {weights, weights->packed};
}

}  // namespace rnnfast

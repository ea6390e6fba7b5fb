// A whole sequence of one recurrence or several: the kernels of every cell, and the choice between
// them and the step kernels.
//
// Work: after Diamos et al. 2016, "Persistent RNNs". A block owns some hidden units, all their
// gates, for the rows of its group (sequence_plan.h), and keeps its slice of weight_hh in shared
// memory over all steps. What a step needs of the other blocks, h_{t-1} in forward and the gates'
// gradients of step t+1 in backward, goes through global memory in a layout of its own, the
// exchange: two buffers in turn, in the operand's type, zero beyond the last row and k, cut into
// tiles of 16 rows by 64 bytes. With two buffers one barrier a step is enough: a block that is a
// step ahead writes the buffer that nobody reads any more.
//
// A grid has the groups of one recurrence, or those of several, which share nothing but the launch:
// each has its arguments and its part of the workspace.
//
// Within a block a tile of 16 rows by all of its columns is shared over k: each of 8 warps takes
// the chunks of k from w C / 8 to (w + 1) C / 8, copies them to shared memory as they are used,
// four ahead, and multiplies (warp_product.cuh). The eight sums of an element are added in the
// order of the warps by the thread that owns its row and unit and goes on with the pointwise part,
// whose inputs it loaded before it waited for the other blocks.
//
// The barrier counts arrivals and is never reset: with B blocks, step s begins when the counter has
// reached (s + 1) B. It needs every block of the group to run, so kernels start as a cooperative
// grid only, which fails where it does not fit, and the launcher asks before.
//
// Time of a step for LSTM, batch 16, hidden 768, on an H100 (132 multiprocessors, 1.7 GHz),
// foretold from arithmetic and never measured. Forward is 128 blocks of 6 units, so 24 columns:
//   barrier             1.5 us  release, atomic and acquire are three trips to the L2 cache
//   h_{t-1} to a block  0.5 us  24 KB in bf16, 49 KB in others: one trip, then 64 bytes a cycle
//   products            0.2 us  in bf16, 18 tensor core instructions a warp;
//                       0.4 us  in TF32, 36 of them;
//                       2.0 us  in float: 16 x 24 x 768 at 128 a cycle are 1.4 us at best
//   sums and gates      0.5 us  three block barriers, 32 loads from shared memory, the activations
// which makes 2.7 us in bf16, 2.9 us in TF32 and 4.5 us in float. Backward, 96 blocks of 8 units,
// copies four times as much to a block: 1 us more in bf16, 2 us in TF32 and float, whose products
// take as much longer as it has fewer blocks, 0.1 and 0.6 us.
//
// Both directions of such a layer at once have 64 blocks of 12 units each, whose products take
// twice as long: 2.9 us in bf16 where one after the other takes 5.4 us.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/intrinsics.cuh"
#include "cuda/sequence_cuda.h"
#include "cuda/sequence_device_cuda.h"
#include "cuda/sequence_plan.h"
#include "cuda/step_tile.cuh"
#include "cuda/warp_product.cuh"

namespace rnnfast {
namespace {

// Step s of seq_len in the order of processing.
struct SequenceStep {
  int64_t time;      // index along the sequence
  int64_t previous;  // that of the step before; -1 where that is the initial state
  bool last;         // its state is the final one

  __host__ __device__ SequenceStep(int64_t seq_len, int32_t reverse, int64_t s)
      : time(reverse ? seq_len - 1 - s : s),
        previous(s == 0 ? -1 : time + (reverse ? 1 : -1)),
        last(s == seq_len - 1) {}
};

// One unit of one row in one step: what a thread computes. Offsets are into a sequence's tensor of
// the given strides, at this step and at the one before, and into a contiguous [N, H] matrix.
struct SequenceItem {
  SequenceStep step;
  int64_t row, unit, hidden_size;

  __device__ int64_t now(int64_t time_stride, int64_t row_stride) const {
    return step.time * time_stride + row * row_stride + unit;
  }
  __device__ int64_t before(int64_t time_stride, int64_t row_stride) const {
    return step.previous * time_stride + row * row_stride + unit;
  }
  __device__ int64_t state() const { return row * hidden_size + unit; }
};

__device__ __forceinline__ const float* floats(const void* tensor) {
  return static_cast<const float*>(tensor);
}
__device__ __forceinline__ float* floats(void* tensor) { return static_cast<float*>(tensor); }

// h_{t-1}, which in forward this thread itself wrote, or h_0.
template <class Args>
__device__ __forceinline__ float load_h_prev(const Args& args, const SequenceItem& item) {
  return item.step.previous < 0
             ? floats(args.h_0)[item.state()]
             : floats(args.output)[item.before(args.output_time, args.output_row)];
}

// Gradient of h_t but for what comes through later steps.
template <class Args>
__device__ __forceinline__ float load_grad_h(const Args& args, const SequenceItem& item) {
  const float grad_h =
      load_or_zero<float>(args.grad_output, item.now(args.grad_output_time, args.grad_output_row));
  return item.step.last ? grad_h + load_or_zero<float>(args.grad_h_n, item.state()) : grad_h;
}

// The arguments of the recurrences that a grid advances: a kernel's parameter.
template <class Args>
struct Recurrences {
  Args each[kMaxAtOnce];
};

// What a block knows of its place, and the work that forward and backward share. P is the operand's
// type, kParts how many columns a unit has.
template <class P, int kParts>
class SequenceBlock {
 public:
  __device__ SequenceBlock(const SequencePlan& plan, int64_t batch, int64_t hidden_size,
                           unsigned char* workspace)
      : plan_(plan), batch_(batch), hidden_size_(hidden_size), columns_(kParts * plan.units) {
    const int place = static_cast<int>(blockIdx.x), blocks = plan.groups * plan.blocks_per_group;
    const int group = place % blocks / plan.blocks_per_group;
    recurrence_ = place / blocks;
    workspace += recurrence_ * (plan.workspace_bytes / plan.at_once);
    first_tile_ = static_cast<int>(int64_t{group} * plan.row_tiles / plan.groups);
    last_tile_ = static_cast<int>((int64_t{group} + 1) * plan.row_tiles / plan.groups);
    first_unit_ = int64_t{place % plan.blocks_per_group} * plan.units;
    local_row_ = static_cast<int>(threadIdx.x) / plan.units;
    local_unit_ = static_cast<int>(threadIdx.x) % plan.units;
    counter_ = reinterpret_cast<uint32_t*>(workspace + group * kCounterBytes);
    exchange_ = workspace + plan.groups * kCounterBytes;
    ring_ = dynamic_shared();
    weights_ = ring_ + kRingBytes;
  }

  __device__ int recurrence() const { return recurrence_; }
  __device__ int first_tile() const { return first_tile_; }
  __device__ int last_tile() const { return last_tile_; }
  __device__ int64_t first_unit() const { return first_unit_; }

  __device__ SequenceItem item(const SequenceStep& step, int tile) const {
    return {step, int64_t{tile} * kSequenceRows + local_row_, first_unit_ + local_unit_,
            hidden_size_};
  }
  __device__ bool inside(const SequenceItem& item) const {
    return local_row_ < kSequenceRows && item.row < batch_ && item.unit < hidden_size_;
  }

  // Fills the slice of weights: value(column, k) for every column of the block and k < depth.
  // Neighbouring threads take neighbouring columns where those are neighbours in memory, else
  // neighbouring k.
  template <bool columns_adjacent, class Value>
  __device__ void load_weights(int64_t depth, Value value) {
    const int padded = plan_.chunks * kChunkDepth<P>;
    for (int i = threadIdx.x; i < padded * columns_; i += kSequenceThreads) {
      const int column = columns_adjacent ? i % columns_ : i / padded;
      const int k = columns_adjacent ? i / columns_ : i % padded;
      const int place = swizzled(column, k % kChunkDepth<P> * static_cast<int>(sizeof(P)));
      *reinterpret_cast<P*>(weight_chunk(k / kChunkDepth<P>) + place) =
          to_operand<P>(k < depth ? value(column, k) : 0.0f);
    }
  }

  // Hands one operand to the other blocks of the group.
  __device__ void give(int buffer, int64_t row, int64_t k, float x) {
    unsigned char* chunk = exchange_chunk(buffer, static_cast<int>(row / kSequenceRows),
                                          static_cast<int>(k / kChunkDepth<P>));
    reinterpret_cast<P*>(chunk + row % kSequenceRows * kChunkBytes)[k % kChunkDepth<P>] =
        to_operand<P>(x);
  }

  // After a __syncthreads() that follows all gifts of a step.
  __device__ void finish_step() {
    if (threadIdx.x == 0) arrive(counter_);
  }

  // Waits until every block of the group has finished `steps` steps.
  __device__ void wait_for_steps(int64_t steps) {
    if (threadIdx.x == 0) wait_for(counter_, static_cast<uint32_t>(steps * plan_.blocks_per_group));
    __syncthreads();
  }

  // The products of a tile's 16 rows in `buffer` with all columns. Ends with a __syncthreads(),
  // after which total() reads them; another has to stand between that and the next multiply().
  __device__ void multiply(int buffer, int tile) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int begin = warp * plan_.chunks / kSequenceWarps;
    const int end = (warp + 1) * plan_.chunks / kSequenceWarps;
    unsigned char* ring = ring_ + warp * (kRingBytes / kSequenceWarps);

    auto fetch = [&](int chunk) {
      if (chunk < end) {
        const unsigned char* source = exchange_chunk(buffer, tile, chunk);
        unsigned char* slot = ring + chunk % kSequenceStages * kRowChunkBytes;
#pragma unroll
        for (int i = 0; i < kRowChunkBytes / kPieceBytes / kWarp; ++i) {
          const int byte = (i * kWarp + lane) * kPieceBytes;
          copy_async(slot + swizzled(byte / kChunkBytes, byte % kChunkBytes), source + byte);
        }
      }
      commit_copies();  // also where there was nothing to copy: groups are counted
    };

    float sum[kColumnTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kSequenceStages - 1; ++i) fetch(begin + i);
    for (int chunk = begin; chunk < end; ++chunk) {
      wait_copies<kSequenceStages - 2>();
      __syncwarp();  // this chunk is there for all lanes, and the one before is used up
      fetch(chunk + kSequenceStages - 1);
      WarpProduct<P>::add_chunk(sum, ring + chunk % kSequenceStages * kRowChunkBytes,
                                weight_chunk(chunk), columns_, lane);
    }
    __syncwarp();  // the ring is used up, and takes the sums

    float4* sums = reinterpret_cast<float4*>(ring);
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
      if (j * kColumnTile < columns_) {
        sums[j * kWarp + lane] = make_float4(sum[j][0], sum[j][1], sum[j][2], sum[j][3]);
      }
    }
    __syncthreads();
  }

  // The product of this thread's row with the column of part g of its unit.
  __device__ float total(int g) const {
    const int column = g * plan_.units + local_unit_;
    const int lane = local_row_ % 8 * 4 + column % kColumnTile / 2;
    const int place = (column / kColumnTile * kWarp + lane) * 4 + local_row_ / 8 * 2 + column % 2;
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < kSequenceWarps; ++warp) {
      total += reinterpret_cast<const float*>(ring_ + warp * (kRingBytes / kSequenceWarps))[place];
    }
    return total;
  }

 private:
  static constexpr int kColumnTiles = kParts * kSequenceMaxUnits / kColumnTile;
  static_assert(kColumnTiles * kWarp * sizeof(float4) <= kRingBytes / kSequenceWarps,
                "a warp's sums fit its ring");

  __device__ unsigned char* weight_chunk(int chunk) const {
    return weights_ + chunk * columns_ * kChunkBytes;
  }
  __device__ unsigned char* exchange_chunk(int buffer, int tile, int chunk) const {
    const int64_t tiles = int64_t{buffer} * plan_.row_tiles + tile;
    return exchange_ + (tiles * plan_.chunks + chunk) * kRowChunkBytes;
  }

  const SequencePlan& plan_;
  int64_t batch_, hidden_size_;
  int columns_;
  int recurrence_;
  int first_tile_, last_tile_;
  int64_t first_unit_;
  int local_row_, local_unit_;
  uint32_t* counter_;
  unsigned char* exchange_;
  unsigned char* ring_;
  unsigned char* weights_;
};

// Cell says what a cell does with its products; {lstm,gru,rnn}_sequence_cuda.cu.
template <class Cell, class P>
__global__ void __launch_bounds__(kSequenceThreads, 1)
    sequence_forward_kernel(const __grid_constant__ Recurrences<typename Cell::Forward> all,
                            SequencePlan plan, unsigned char* workspace) {
  const int64_t hidden_size = all.each[0].hidden_size;
  SequenceBlock<P, Cell::kGates> block(plan, all.each[0].batch, hidden_size, workspace);
  const typename Cell::Forward& args = all.each[block.recurrence()];
  const float* weight_hh = floats(args.weight_hh);
  block.template load_weights<false>(hidden_size, [&](int column, int k) {
    const int64_t unit = block.first_unit() + column % plan.units;
    const int64_t row = column / plan.units * hidden_size + unit;
    return unit < hidden_size ? weight_hh[row * hidden_size + k] : 0.0f;
  });
  for (int tile = block.first_tile(); tile < block.last_tile(); ++tile) {
    const SequenceItem item = block.item(SequenceStep(args.seq_len, args.reverse, 0), tile);
    if (block.inside(item)) block.give(0, item.row, item.unit, floats(args.h_0)[item.state()]);
  }
  __syncthreads();
  block.finish_step();

  for (int64_t s = 0; s < args.seq_len; ++s) {
    const SequenceStep step(args.seq_len, args.reverse, s);
    const int buffer = static_cast<int>(s % 2);
    for (int tile = block.first_tile(); tile < block.last_tile(); ++tile) {
      const SequenceItem item = block.item(step, tile);
      const bool inside = block.inside(item);
      typename Cell::ForwardInputs inputs = {};
      if (inside) inputs = Cell::load(args, item);
      if (tile == block.first_tile()) block.wait_for_steps(s + 1);
      block.multiply(buffer, tile);
      if (inside) {
        float product[Cell::kGates];
#pragma unroll
        for (int g = 0; g < Cell::kGates; ++g) product[g] = block.total(g);
        const float h = Cell::forward(args, item, inputs, product);
        block.give(1 - buffer, item.row, item.unit, h);
        floats(args.output)[item.now(args.output_time, args.output_row)] = h;
        if (step.last) floats(args.h_n)[item.state()] = h;
      }
      __syncthreads();
    }
    block.finish_step();
  }
}

// From the last step to the first. Step s takes the product for the gradient of its h from what
// step s + 1 gave; a last round takes that of h_0.
template <class Cell, class P>
__global__ void __launch_bounds__(kSequenceThreads, 1)
    sequence_backward_kernel(const __grid_constant__ Recurrences<typename Cell::Backward> all,
                             SequencePlan plan, unsigned char* workspace) {
  const int64_t hidden_size = all.each[0].hidden_size;
  SequenceBlock<P, 1> block(plan, all.each[0].batch, hidden_size, workspace);
  const typename Cell::Backward& args = all.each[block.recurrence()];
  const float* weight_hh = floats(args.weight_hh);
  block.template load_weights<true>(Cell::kGates * hidden_size, [&](int column, int k) {
    const int64_t unit = block.first_unit() + column;
    return unit < hidden_size ? weight_hh[k * hidden_size + unit] : 0.0f;
  });
  __syncthreads();

  for (int64_t done = 0; done <= args.seq_len; ++done) {
    const int64_t s = args.seq_len - 1 - done;
    const SequenceStep step(args.seq_len, args.reverse, s);
    const int buffer = static_cast<int>(done % 2);
    for (int tile = block.first_tile(); tile < block.last_tile(); ++tile) {
      const SequenceItem item = block.item(step, tile);
      const bool inside = block.inside(item);
      typename Cell::BackwardInputs inputs = {};
      if (inside && s >= 0) inputs = Cell::load_backward(args, item);
      float grad_h = 0;
      if (done > 0) {
        if (tile == block.first_tile()) block.wait_for_steps(done);
        block.multiply(1 - buffer, tile);
        if (inside) grad_h = block.total(0);
      }
      if (inside && s >= 0) {
        float operand[Cell::kGates];
        Cell::backward(args, item, inputs, grad_h, operand);
#pragma unroll
        for (int g = 0; g < Cell::kGates; ++g) {
          block.give(buffer, item.row, g * hidden_size + item.unit, operand[g]);
        }
      } else if (inside) {
        float* grad_h_0 = floats(args.grad_h_0) + item.state();
        *grad_h_0 = Cell::kCarriesGradH ? grad_h + *grad_h_0 : grad_h;
      }
      __syncthreads();
    }
    block.finish_step();
  }
}

// ---- step by step

// h[row, unit] (+)= sum over k < depth of a[row, k] * weight[k, unit]: what lies between two
// backward steps. weight is [depth, H] contiguous, h [N, H] contiguous.
struct TransposedProduct {
  int64_t batch, hidden_size;
  const void* a;  // [N, depth]
  int64_t a_row, depth;
  const void* weight;
  void* h;
  int32_t add;
};

template <class T>
__global__ void __launch_bounds__(kStepThreads) transposed_product_kernel(TransposedProduct args) {
  const StepTile tile(args.batch, args.hidden_size);
  T product[1];
  tile_product(tile, static_cast<const T*>(args.a), args.a_row, args.depth,
               static_cast<const T*>(args.weight), 1, args.hidden_size, product);
  if (!tile.inside()) return;
  T* h = static_cast<T*>(args.h) + tile.row * args.hidden_size + tile.unit;
  *h = args.add ? *h + product[0] : product[0];
}

template <class T>
const T* offset(const void* tensor, int64_t elements) {
  return tensor != nullptr ? static_cast<const T*>(tensor) + elements : nullptr;
}
template <class T>
T* offset(void* tensor, int64_t elements) {
  return tensor != nullptr ? static_cast<T*>(tensor) + elements : nullptr;
}

// Copies a contiguous [N, H] matrix, or clears it where there is no source.
template <class T, class Args>
cudaError_t copy_state(const Args& args, const void* source, int64_t source_row, void* destination,
                       cudaStream_t stream) {
  const size_t width = static_cast<size_t>(args.hidden_size) * sizeof(T);
  const size_t rows = static_cast<size_t>(args.batch);
  if (width * rows == 0) return cudaSuccess;
  if (source == nullptr) return cudaMemsetAsync(destination, 0, width * rows, stream);
  return cudaMemcpy2DAsync(destination, width, source, source_row * sizeof(T), width, rows,
                           cudaMemcpyDeviceToDevice, stream);
}

template <class T, class Args>
cudaError_t copy_h_n(const Args& args, cudaStream_t stream) {
  if (args.seq_len == 0) {
    return copy_state<T>(args, args.h_0, args.hidden_size, args.h_n, stream);
  }
  const SequenceStep last(args.seq_len, args.reverse, args.seq_len - 1);
  return copy_state<T>(args, offset<T>(args.output, last.time * args.output_time), args.output_row,
                       args.h_n, stream);
}

template <class Cell, class T>
cudaError_t sequence_forward_by_steps(const typename Cell::Forward& args, cudaStream_t stream) {
  for (int64_t s = 0; s < args.seq_len; ++s) {
    const SequenceStep step(args.seq_len, args.reverse, s);
    const cudaError_t error = Cell::template launch_step<T>(args, step, stream);
    if (error != cudaSuccess) return error;
  }
  return Cell::template copy_final_state<T>(args, stream);
}

template <class Cell, class T>
cudaError_t sequence_backward_by_steps(const typename Cell::Backward& args, void* workspace,
                                       cudaStream_t stream) {
  cudaError_t error = Cell::template copy_final_gradient<T>(args, stream);
  for (int64_t s = args.seq_len - 1; s >= 0 && error == cudaSuccess; --s) {
    const SequenceStep step(args.seq_len, args.reverse, s);
    error = Cell::template launch_step_backward<T>(args, step, workspace, stream);
  }
  return error;
}

// ---- the choice

inline int64_t grid_blocks(const SequencePlan& plan) {
  return int64_t{plan.at_once} * plan.groups * plan.blocks_per_group;
}

// Whether all blocks of the plan can run at once here and now.
template <class Kernel>
cudaError_t can_be_resident(Kernel* kernel, const SequencePlan& plan, bool* yes) {
  *yes = false;
  SequenceDevice device;
  cudaError_t error = sequence_device_cuda(&device);
  if (error != cudaSuccess) return error;
  if (!device.cooperative || plan.shared_bytes > device.shared_bytes) return cudaSuccess;
  // All that there is: the limit is the kernel's, so that of a smaller plan, set by another thread,
  // would make the launch of a larger one fail.
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               device.shared_bytes);
  if (error != cudaSuccess) return error;
  int blocks = 0;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kSequenceThreads,
                                                        static_cast<size_t>(plan.shared_bytes));
  *yes = int64_t{blocks} * device.multiprocessors >= grid_blocks(plan);
  return error;
}

// One grid: as many recurrences as the plan says, from `args` on.
template <class Args>
cudaError_t launch_grid(void (*kernel)(Recurrences<Args>, SequencePlan, unsigned char*),
                        const Args* args, const SequencePlan& plan, void* workspace,
                        cudaStream_t stream) {
  Recurrences<Args> all = {};
  for (int32_t i = 0; i < plan.at_once; ++i) all.each[i] = args[i];
  const cudaError_t error =
      cudaMemsetAsync(workspace, 0, static_cast<size_t>(plan.workspace_bytes), stream);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<uint32_t>(grid_blocks(plan)));
  config.blockDim = dim3(kSequenceThreads);
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, all, plan, static_cast<unsigned char*>(workspace));
}

// Launches as many grids as there have to be. Where the plan's recurrences cannot be resident at
// once, on a device smaller than the plan's, one after the other may; *launched is false where that
// cannot either.
template <class Args>
cudaError_t launch_persistent(void (*kernel)(Recurrences<Args>, SequencePlan, unsigned char*),
                              const Args* args, int32_t recurrences, SequencePlan plan,
                              void* workspace, cudaStream_t stream, bool* launched) {
  cudaError_t error = can_be_resident(kernel, plan, launched);
  if (error == cudaSuccess && !*launched && plan.at_once > 1) {
    plan = with_at_once(plan, 1);
    error = can_be_resident(kernel, plan, launched);
  }
  if (error != cudaSuccess || !*launched) return error;
  for (int32_t i = 0; i < recurrences && error == cudaSuccess; i += plan.at_once) {
    if (recurrences - i < plan.at_once) plan = with_at_once(plan, recurrences - i);
    error = launch_grid(kernel, args + i, plan, workspace, stream);
  }
  return error;
}

// All recurrences must be of the same batch and hidden_size, and the plan one for these.
template <class P, class Args>
bool sizes_fit(const Args* args, int32_t recurrences, const SequencePlan& plan,
               int columns_per_unit, int64_t depth_per_unit) {
  if (recurrences < 1) return false;
  const Args& first = args[0];
  if (first.batch < 0 || first.hidden_size < 0) return false;
  for (int32_t i = 0; i < recurrences; ++i) {
    if (args[i].seq_len < 0 || args[i].batch != first.batch ||
        args[i].hidden_size != first.hidden_size) {
      return false;
    }
  }
  if (!plan.persistent) return true;
  const int64_t bytes = first.hidden_size * depth_per_unit * static_cast<int64_t>(sizeof(P));
  const int64_t columns = int64_t{plan.units} * columns_per_unit;
  return plan.at_once >= 1 && plan.at_once <= recurrences && plan.at_once <= kMaxAtOnce &&
         plan.row_tiles == ceil_divide(first.batch, kSequenceRows) &&
         plan.chunks == ceil_divide(bytes, kChunkBytes) &&
         plan.blocks_per_group == ceil_divide(first.hidden_size, plan.units) &&
         plan.shared_bytes == columns * plan.chunks * kChunkBytes + kRingBytes;
}

// Whether every one of these has steps, and the cell a persistent kernel for it.
template <class Cell, class Args>
bool all_persistent(const Args* args, int32_t recurrences) {
  for (int32_t i = 0; i < recurrences; ++i) {
    if (args[i].seq_len == 0 || !Cell::persistent(args[i])) return false;
  }
  return true;
}

// P is the operand's type; tensors are of double where it is double, else of float.
template <class P>
using SequenceTensor = std::conditional_t<std::is_same<P, double>::value, double, float>;

template <class Cell, class P>
cudaError_t sequence_forward(const typename Cell::Forward* args, int32_t recurrences,
                             const SequencePlan& plan, void* workspace, cudaStream_t stream) {
  if (!sizes_fit<P>(args, recurrences, plan, Cell::kGates, 1)) return cudaErrorInvalidValue;
  if (args->batch == 0) return cudaSuccess;  // nothing to give
  cudaError_t error = cudaSuccess;
  if constexpr (!std::is_same<P, double>::value) {
    if (plan.persistent && all_persistent<Cell>(args, recurrences)) {
      bool launched;
      error = launch_persistent(sequence_forward_kernel<Cell, P>, args, recurrences, plan,
                                workspace, stream, &launched);
      if (error != cudaSuccess || launched) return error;
    }
  }
  for (int32_t i = 0; i < recurrences && error == cudaSuccess; ++i) {
    error = sequence_forward_by_steps<Cell, SequenceTensor<P>>(args[i], stream);
  }
  return error;
}

template <class Cell, class P>
cudaError_t sequence_backward(const typename Cell::Backward* args, int32_t recurrences,
                              const SequencePlan& plan, void* workspace, cudaStream_t stream) {
  if (!sizes_fit<P>(args, recurrences, plan, 1, Cell::kGates)) return cudaErrorInvalidValue;
  if (args->batch == 0) return cudaSuccess;  // nothing to give
  cudaError_t error = cudaSuccess;
  if constexpr (!std::is_same<P, double>::value) {
    if (plan.persistent && all_persistent<Cell>(args, recurrences)) {
      bool launched;
      error = launch_persistent(sequence_backward_kernel<Cell, P>, args, recurrences, plan,
                                workspace, stream, &launched);
      if (error != cudaSuccess || launched) return error;
    }
  }
  for (int32_t i = 0; i < recurrences && error == cudaSuccess; ++i) {
    error = sequence_backward_by_steps<Cell, SequenceTensor<P>>(args[i], workspace, stream);
  }
  return error;
}

}  // namespace

// The cell whose Args these are.
template <class Args>
struct CellOf;

template <class P, class Args>
cudaError_t sequence_cuda(const Args* args, int32_t recurrences, const SequencePlan* plan,
                          void* workspace, cudaStream_t stream) {
  using Cell = typename CellOf<Args>::type;
  if constexpr (std::is_same<Args, typename Cell::Forward>::value) {
    return sequence_forward<Cell, P>(args, recurrences, *plan, workspace, stream);
  } else {
    return sequence_backward<Cell, P>(args, recurrences, *plan, workspace, stream);
  }
}

// Makes the launcher of a cell, forward and backward, for every P.
#define RNNFAST_SEQUENCE_FOR(Args, P)                                                     \
  template cudaError_t sequence_cuda<P>(const Args*, int32_t, const SequencePlan*, void*, \
                                        cudaStream_t);
#define RNNFAST_SEQUENCE_OF(Cell, Args) \
  template <>                           \
  struct CellOf<Args> {                 \
    using type = Cell;                  \
  };                                    \
  RNNFAST_SEQUENCE_FOR(Args, float)     \
  RNNFAST_SEQUENCE_FOR(Args, double)    \
  RNNFAST_SEQUENCE_FOR(Args, Tf32)      \
  RNNFAST_SEQUENCE_FOR(Args, __half)    \
  RNNFAST_SEQUENCE_FOR(Args, __nv_bfloat16)
#define RNNFAST_SEQUENCE(Cell)             \
  RNNFAST_SEQUENCE_OF(Cell, Cell::Forward) \
  RNNFAST_SEQUENCE_OF(Cell, Cell::Backward)

}  // namespace rnnfast

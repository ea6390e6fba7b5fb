// What the step kernels of every cell share: how a step is cut into blocks, the recurrent product,
// and the launch.
//
// One thread owns one unit of one row and computes all its G gates, so the pointwise part needs no
// second kernel and no exchange between threads. A block of 256 threads covers 32 rows by 8 units;
// blocks run over units first. A step of a small batch is one row of blocks: the units are cut as
// finely as memory allows (8 floats are one 32-byte sector) so that the step spreads over many
// multiprocessors, and the weights, which are the bulk of the traffic, are read once per 32 rows.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace rnnfast {
namespace {

constexpr int kWarp = 32;
constexpr int kTileRows = 32;
constexpr int kTileUnits = 8;
constexpr int kTileDepth = kWarp;  // of k: a warp loads one row of a tile, a lane one element
constexpr int kStepThreads = kTileRows * kTileUnits;
constexpr int kStepWarps = kStepThreads / kWarp;
static_assert(kStepWarps == kTileUnits, "warp w loads the weights of the tile's unit w");

// Rows of the block's tile are first_row + [0, 32), units first_unit + [0, 8); row and unit are
// this thread's own, and may lie outside the matrix in the last tiles.
struct StepTile {
  int64_t batch, hidden_size;
  int64_t first_row, first_unit;
  int64_t row, unit;

  __device__ StepTile(int64_t batch, int64_t hidden_size) : batch(batch), hidden_size(hidden_size) {
    const uint32_t unit_blocks = static_cast<uint32_t>((hidden_size - 1) / kTileUnits + 1);
    first_row = static_cast<int64_t>(blockIdx.x / unit_blocks) * kTileRows;
    first_unit = static_cast<int64_t>(blockIdx.x % unit_blocks) * kTileUnits;
    row = first_row + threadIdx.x / kTileUnits;
    unit = first_unit + threadIdx.x % kTileUnits;
  }

  __device__ bool inside() const { return row < batch && unit < hidden_size; }
};

// sum[g] = sum over k < depth of a[row, k] * weight[(g * hidden_size + unit) * unit_stride +
// k * k_stride], for this thread's row and unit. Every thread of the block must call it, once in a
// kernel. a is [N, depth] with the given row stride.
//
// k goes in tiles of 32 through shared memory; while one tile is multiplied the next one is already
// on its way to registers. Each tile is summed alone and then added: the order is fixed, so a row's
// bits do not depend on its batch, and rounding errors grow with 32 + H / 32 rather than with H.
template <int G, class T>
__device__ __forceinline__ void tile_product(const StepTile& tile, const T* a, int64_t a_row,
                                             int64_t depth, const T* weight, int64_t unit_stride,
                                             int64_t k_stride, T (&sum)[G]) {
  // A 16-byte word of padding keeps rows aligned for 128-bit loads and puts 8 rows in different
  // banks.
  constexpr int kStride = kTileDepth + 16 / static_cast<int>(sizeof(T));
  constexpr int kShareRows = kTileRows / kStepWarps;
  constexpr int kShare = kShareRows + G;
  alignas(16) __shared__ T shared[kShare * kStepWarps * kStride];

  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;

  // This warp's share of a tile: rows of a, then one row of weights per gate. Null outside the
  // matrix.
  const T* source[kShare];
#pragma unroll
  for (int i = 0; i < kShareRows; ++i) {
    const int64_t row = tile.first_row + i * kStepWarps + warp;
    source[i] = row < tile.batch ? a + row * a_row : nullptr;
  }
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int64_t unit = tile.first_unit + warp;
    source[kShareRows + g] =
        unit < tile.hidden_size ? weight + (g * tile.hidden_size + unit) * unit_stride : nullptr;
  }

  T ahead[kShare];
  auto fetch = [&](int64_t k) {
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const int64_t stride = i < kShareRows ? 1 : k_stride;
      ahead[i] = source[i] != nullptr && k < depth ? source[i][k * stride] : T(0);
    }
  };

  const T* a_tile = shared + static_cast<int>(threadIdx.x) / kTileUnits * kStride;
  const T* weight_tile =
      shared + (kTileRows + static_cast<int>(threadIdx.x) % kTileUnits) * kStride;

#pragma unroll
  for (int g = 0; g < G; ++g) sum[g] = T(0);
  fetch(lane);
  for (int64_t k = 0; k < depth; k += kTileDepth) {
#pragma unroll
    for (int i = 0; i < kShare; ++i) shared[(i * kStepWarps + warp) * kStride + lane] = ahead[i];
    __syncthreads();
    fetch(k + kTileDepth + lane);
    T part[G] = {};
#pragma unroll
    for (int j = 0; j < kTileDepth; ++j) {
#pragma unroll
      for (int g = 0; g < G; ++g) {
        part[g] += a_tile[j] * weight_tile[g * kTileUnits * kStride + j];
      }
    }
#pragma unroll
    for (int g = 0; g < G; ++g) sum[g] += part[g];
    __syncthreads();
  }
}

// sum[g] = sum over k of h[row, k] * weight[g * hidden_size + unit, k]: h is [N, H] with the given
// row stride, weight [G H, H] contiguous.
template <int G, class T>
__device__ __forceinline__ void recurrent_product(const StepTile& tile, const T* h, int64_t h_row,
                                                  const T* weight, T (&sum)[G]) {
  tile_product(tile, h, h_row, tile.hidden_size, weight, tile.hidden_size, 1, sum);
}

// An optional [N, H] matrix: null reads as zero.
template <class T>
__device__ __forceinline__ T load_or_zero(const void* matrix, int64_t index) {
  return matrix != nullptr ? static_cast<const T*>(matrix)[index] : T(0);
}

// Launches a step kernel over [batch, hidden_size]; an empty step is no launch and no error.
template <class Args>
cudaError_t launch_step(void (*kernel)(Args), const Args& args, cudaStream_t stream) {
  if (args.batch < 0 || args.hidden_size < 0) return cudaErrorInvalidValue;
  if (args.batch == 0 || args.hidden_size == 0) return cudaSuccess;
  const int64_t row_blocks = (args.batch - 1) / kTileRows + 1;
  const int64_t unit_blocks = (args.hidden_size - 1) / kTileUnits + 1;
  if (row_blocks > INT32_MAX / unit_blocks) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<uint32_t>(row_blocks * unit_blocks));
  config.blockDim = dim3(kStepThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace
}  // namespace rnnfast

// The product of one warp: 16 rows of A by some rows of B, both over one chunk of k.
//
// A chunk is 64 bytes of k: 16 floats or TF32, or 32 of a half type. A row's chunk stands in shared
// memory as four pieces of 16 bytes, which are loaded whole. Piece p of row r stands in place p ^
// (r / 2 % 4) of that row's 64 bytes, so that eight lanes that load one piece of eight rows, or the
// four pieces of two rows, touch each of the 32 banks once.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/intrinsics.cuh"
#include "cuda/sequence_plan.h"

namespace rnnfast {
namespace {

constexpr int kPieceBytes = 16;
constexpr int kColumnTile = 8;

template <class P>
constexpr int kChunkDepth = kChunkBytes / static_cast<int>(sizeof(P));

template <class P>
__device__ __forceinline__ P to_operand(float x) {
  if constexpr (std::is_same<P, float>::value) {
    return x;
  } else if constexpr (std::is_same<P, Tf32>::value) {
    return round_to_tf32(x);
  } else if constexpr (std::is_same<P, __half>::value) {
    return __float2half(x);
  } else {
    return __float2bfloat16(x);
  }
}

// Where byte `offset` of the chunk of a row stands, within a chunk of many rows.
__device__ __forceinline__ int swizzled(int row, int offset) {
  return row * kChunkBytes + (offset ^ ((row / 2 % 4) * kPieceBytes));
}

template <class Piece>
__device__ __forceinline__ Piece load_piece(const unsigned char* chunk, int row, int piece) {
  return *reinterpret_cast<const Piece*>(chunk + swizzled(row, piece * kPieceBytes));
}

// sum[j] += A[16 rows] B[8 rows from 8 j]^T over one chunk, for every j with 8 j < columns. A lane
// holds the same four sums of each 16 x 8 tile as of the tensor cores' (multiply_add). What belongs
// to columns from `columns` on is of no use.
//
// All types but float, on tensor cores: the order of k within a chunk is free as long as A and B
// agree. So a lane takes one piece of a row, and of its four words two go to each of two
// instructions, whose own order would have four loads.
template <class P>
struct WarpProduct {
  template <int kColumnTiles>
  static __device__ __forceinline__ void add_chunk(float (&sum)[kColumnTiles][4],
                                                   const unsigned char* a, const unsigned char* b,
                                                   int columns, int lane) {
    const uint4 upper = load_piece<uint4>(a, lane / 4, lane % 4);
    const uint4 lower = load_piece<uint4>(a, lane / 4 + 8, lane % 4);
    const uint32_t first[4] = {upper.x, lower.x, upper.y, lower.y};
    const uint32_t second[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
      if (j * kColumnTile < columns) {
        const int column = min(j * kColumnTile + lane / 4, columns - 1);
        const uint4 piece = load_piece<uint4>(b, column, lane % 4);
        const uint32_t first_b[2] = {piece.x, piece.y}, second_b[2] = {piece.z, piece.w};
        multiply_add(P(), sum[j], first, first_b);
        multiply_add(P(), sum[j], second, second_b);
      }
    }
  }
};

__device__ __forceinline__ void add_dot(float& sum, float4 a, float4 b) {
  sum = fmaf(a.x, b.x, sum);
  sum = fmaf(a.y, b.y, sum);
  sum = fmaf(a.z, b.z, sum);
  sum = fmaf(a.w, b.w, sum);
}

template <>
struct WarpProduct<float> {
  template <int kColumnTiles>
  static __device__ __forceinline__ void add_chunk(float (&sum)[kColumnTiles][4],
                                                   const unsigned char* a, const unsigned char* b,
                                                   int columns, int lane) {
#pragma unroll
    for (int piece = 0; piece < kChunkBytes / kPieceBytes; ++piece) {
      const float4 upper = load_piece<float4>(a, lane / 4, piece);
      const float4 lower = load_piece<float4>(a, lane / 4 + 8, piece);
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        if (j * kColumnTile < columns) {
          const int column = j * kColumnTile + lane % 4 * 2;
          const float4 left = load_piece<float4>(b, min(column, columns - 1), piece);
          const float4 right = load_piece<float4>(b, min(column + 1, columns - 1), piece);
          add_dot(sum[j][0], upper, left);
          add_dot(sum[j][1], upper, right);
          add_dot(sum[j][2], lower, left);
          add_dot(sum[j][3], lower, right);
        }
      }
    }
  }
};

}  // namespace
}  // namespace rnnfast

// How a whole sequence is laid on a device: which blocks own which units and rows, or that it goes
// step by step. Plain C++, so that it can be tested where there is no GPU.
//
// A persistent plan has, for each recurrence, `groups` groups of `blocks_per_group` blocks. The
// batch is cut into tiles of 16 rows; a group owns row_tiles / groups of them (one more or less),
// and within it a block owns `units` neighbouring hidden units, all their gates. Rows never need
// each other, so only the blocks of a group wait for one another. All blocks must be resident at
// once: one to a multiprocessor.
//
// Recurrences that a call has several of never need each other either: the directions of a layer,
// or layers each of which works on another part of the sequence. So many advance at once, each on
// its share of the multiprocessors, and those that are left after them: the plan says how many, by
// `at_once`.
//
// Whether a plan is persistent depends on hidden_size, cell, operand and device, not on the number
// of recurrences nor on the batch below kMaxRowTiles tiles; and no plan changes the order of a sum.
// So a row's bits do not depend on the batch around it, nor on the other recurrences.
#pragma once

#include <stdint.h>

namespace rnnfast {

// The shape of a block, common to plan and kernel. 64 bytes of k, a chunk, are what is copied,
// stored and multiplied at a time: 16 floats or TF32, or 32 of a half type.
constexpr int kSequenceThreads = 256;
constexpr int kSequenceWarps = kSequenceThreads / 32;
constexpr int kSequenceRegisters = 256;  // a thread's, at most
constexpr int kSequenceRows = 16;        // of a tile, the rows of a tensor core's product
constexpr int kSequenceMaxUnits = kSequenceThreads / kSequenceRows;  // a thread has one (row, unit)
constexpr int kChunkBytes = 64;
constexpr int kSequenceStages = 4;  // chunks that a warp keeps on their way
constexpr int kMaxAtOnce = 8;       // recurrences of a grid
constexpr int kCounterBytes = 128;  // a barrier's counter has a cache line of its own
constexpr int64_t kMaxRowTiles = int64_t{1} << 20;

constexpr int kRowChunkBytes = kSequenceRows * kChunkBytes;
constexpr int kRingBytes = kSequenceWarps * kSequenceStages * kRowChunkBytes;

// clang-format off: the fields are a table
struct SequenceProblem {
  int64_t batch, hidden_size;
  int32_t gates;             // 4 LSTM, 3 GRU, 1 RNN
  int32_t operand_bytes;     // of h and weight_hh in the product: 4 float and TF32, 2 half, 8 double
  int32_t backward;
  int32_t recurrences;       // of these sizes, that do not need each other
};

struct SequenceDevice {
  int32_t multiprocessors;
  int32_t shared_bytes;      // most that a block can ask for
  int32_t registers;         // of a block, at most
  int32_t cooperative;       // whether it can start a grid whose blocks wait for each other
};

struct SequencePlan {
  int32_t persistent;        // 0: step by step, and all below is 0
  int32_t at_once;           // recurrences of a grid
  int32_t groups;            // of each of them
  int32_t blocks_per_group, units;
  int32_t row_tiles, chunks; // tiles of 16 rows; chunks of 64 bytes of k
  int64_t shared_bytes;      // dynamic, a block's
  int64_t workspace_bytes;   // device memory, 128-byte aligned, that a call needs beside its tensors
};
// clang-format on

inline int64_t ceil_divide(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Of all plans that fit, the one with the least estimated time of a step of all recurrences; of
// equal ones the one with fewer blocks to wait for. Copying a chunk of 16 rows and multiplying it
// by 8 columns take about as long as each other, all that a tile costs besides about 64 times that,
// and the barrier of a step three times as long as that (sequence.cuh has the times).
inline SequencePlan plan_sequence(const SequenceProblem& problem, const SequenceDevice& device) {
  constexpr int64_t kTileOverhead = 64, kBarrier = 3 * kTileOverhead;
  SequencePlan best = {};
  const int64_t row_tiles = ceil_divide(problem.batch, kSequenceRows);
  if (problem.batch <= 0 || problem.hidden_size <= 0 || row_tiles > kMaxRowTiles ||
      problem.recurrences <= 0 || problem.hidden_size > INT32_MAX / 8 ||
      problem.operand_bytes > 4 || !device.cooperative ||
      device.registers < kSequenceThreads * kSequenceRegisters) {
    return best;
  }
  // Forward multiplies h, [N, H], by all gates of the block's units; backward the gradients of
  // every gate, [N, G H], by the units' columns.
  const int64_t depth = problem.hidden_size * (problem.backward ? problem.gates : 1);
  const int64_t chunks = ceil_divide(depth * problem.operand_bytes, kChunkBytes);
  int64_t least = INT64_MAX;
  const int32_t most = problem.recurrences < kMaxAtOnce ? problem.recurrences : kMaxAtOnce;
  for (int32_t at_once = 1; at_once <= most; ++at_once) {
    const int64_t multiprocessors = device.multiprocessors / at_once;
    const int64_t rounds = ceil_divide(problem.recurrences, at_once);
    for (int64_t groups = 1; groups <= row_tiles && groups <= multiprocessors; ++groups) {
      const int64_t fewest_units = ceil_divide(problem.hidden_size, multiprocessors / groups);
      for (int64_t units = fewest_units; units <= kSequenceMaxUnits; ++units) {
        const int64_t columns = units * (problem.backward ? 1 : problem.gates);
        const int64_t shared_bytes = columns * chunks * kChunkBytes + kRingBytes;
        const int64_t blocks_per_group = ceil_divide(problem.hidden_size, units);
        const int64_t tile = (ceil_divide(columns, 8) + 1) * chunks + kTileOverhead;
        const int64_t cost = rounds * (ceil_divide(row_tiles, groups) * tile + kBarrier);
        if (shared_bytes > device.shared_bytes || cost > least ||
            (cost == least && blocks_per_group >= best.blocks_per_group)) {
          continue;
        }
        least = cost;
        best.persistent = 1;
        best.at_once = at_once;
        best.groups = static_cast<int32_t>(groups);
        best.blocks_per_group = static_cast<int32_t>(blocks_per_group);
        best.units = static_cast<int32_t>(units);
        best.row_tiles = static_cast<int32_t>(row_tiles);
        best.chunks = static_cast<int32_t>(chunks);
        best.shared_bytes = shared_bytes;
        best.workspace_bytes =
            at_once * (groups * kCounterBytes + 2 * row_tiles * chunks * kRowChunkBytes);
      }
    }
  }
  return best;
}

// The same plan for fewer recurrences at once.
inline SequencePlan with_at_once(SequencePlan plan, int32_t at_once) {
  plan.workspace_bytes = plan.workspace_bytes / plan.at_once * at_once;
  plan.at_once = at_once;
  return plan;
}

}  // namespace rnnfast

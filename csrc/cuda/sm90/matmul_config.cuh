// Sizes of the matmuls on Hopper. No result depends on them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/common.cuh"
#include "cuda/matmul_config.cuh"
#include "cuda/sm90/pipeline.cuh"
#include "pybatch/matmul.h"

namespace pybatch::cuda {

constexpr int kStageK = 128;        // bytes of a row of x in a pipeline stage: the width of the swizzle
constexpr int kRowTilesAside = 16;  // blocks near each other in time share so many tiles of rows in L2

// Of a block, where so many share a multiprocessor: each takes a KiB more.
constexpr size_t hopper_shared_bytes(int blocks) { return 228 * 1024 / blocks - 1024; }

// Registers of a thread once the roles are known, of 128 that copy and 256 that multiply: no more in all than the 168
// that each begins with, or setmaxnreg waits for ever.
constexpr int kCopyRegisters = 24, kMultiplyRegisters = 240;

// Rows of x: the N of the wgmma; warpgroups that multiply, with 64 columns each, beside one that copies; bytes of a
// panel of weights in a stage; blocks of a multiprocessor.
template <int kRows_, int kConsumers_, int kPanelBytes_, int kBlocks_ = 1>
struct WgmmaTile {
  static constexpr int kRows = kRows_, kConsumers = kConsumers_, kPanelBytes = kPanelBytes_;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kColumns = kConsumers * 64, kPanels = kColumns / kPanel;  // a panel a warp
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kCluster = kConsumers == 2 ? 2 : 1;  // blocks that share rows, each copying its part for all
  static constexpr int kRowBytes = kRows * kStageK;
  static constexpr int kStageBytes = kRowBytes + kPanels * kPanelBytes;  // rows first
  static_assert(kRowBytes / kCluster % 1024 == 0 && kStageBytes % 1024 == 0, "the swizzle repeats every 1024 bytes");

  // Sums go through shared memory so many rows at a time, beside their columns' scales and biases.
  static constexpr int kTurnRows = 32;
  static constexpr int kPitch = 64 + 4;  // of a row's sums: in different banks
  static constexpr int kGroupSumBytes = (kTurnRows * kPitch + 2 * 64) * sizeof(float);
  static constexpr int kSumBytes = kConsumers * kGroupSumBytes;
  static constexpr int kStages = (hopper_shared_bytes(kBlocks) - kSumBytes) / (kStageBytes + 2 * sizeof(uint64_t));

  static constexpr size_t stage_bytes() { return size_t{kStages} * kStageBytes; }
  static constexpr size_t shared_bytes() { return stage_bytes() + kSumBytes + 2 * kStages * sizeof(uint64_t); }
};

// Few rows: the ring of kWarpsN warps, where a block has kSplits of them. A stage is one box of kPanelBytes of each
// panel, or two if they are small.
template <int kRows_, int kWarpsN_, int kPanelBytes_>
struct FewRowsTile {
  static constexpr int kRows = kRows_, kWarpsN = kWarpsN_, kPanelBytes = kPanelBytes_;
  static constexpr int kWarps = kWarpsN * kSplits, kPanels = kWarpsN * kWarpColumns / kPanel;
  static constexpr int kBlocks = kWarps <= 8 ? 2 : 1;  // of a multiprocessor
  static constexpr int kBoxes = kPanelBytes <= 1024 && kRows <= 16 && kWarpsN == 1 ? 2 : 1;
  static constexpr int kRowBytes = kRows * kStageK, kPanelStage = kBoxes * kPanelBytes;
  static constexpr int kStageBytes = kBoxes * kRowBytes + kPanels * kPanelStage;
  static constexpr int kStages = hopper_shared_bytes(kBlocks) / (kSplits * (kStageBytes + sizeof(uint64_t)));
  static_assert(kStages >= 2);

  static constexpr size_t shared_bytes() { return size_t{kSplits} * kStages * (kStageBytes + sizeof(uint64_t)); }
};

// Tiles run in waves of one a multiprocessor, each of which takes as long as its copies.
template <class Tile>
constexpr int64_t bytes_in_turn(int64_t m, int64_t n, int64_t multiprocessors) {
  return ceil_div(ceil_div(m, Tile::kRows) * ceil_div(n, Tile::kColumns), multiprocessors) * Tile::kStageBytes;
}

}  // namespace pybatch::cuda

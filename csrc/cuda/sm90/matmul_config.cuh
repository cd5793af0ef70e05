// Sizes of the W8A8 matmul on Hopper. No result depends on them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/common.cuh"
#include "pybatch/matmul.h"

namespace pybatch::cuda {

constexpr int kWarpgroup = 128;                // threads
constexpr int kConsumers = 2;                  // warpgroups that multiply, with 64 columns each; one more copies
constexpr int kTileColumns = kConsumers * 64;  // four panels a warpgroup, one a warp
constexpr int kTilePanels = kTileColumns / kPanel;
constexpr int kStageK = 128;  // bytes of a row in a pipeline stage: the width of the swizzle
constexpr int kStagePanelBytes = kStageK * kPanel;
constexpr int kRowTilesAside = 16;  // blocks near each other in time share so many tiles of rows in L2

// Registers of a thread once the roles are known: 64 Ki over 128 that copy and 256 that multiply.
constexpr int kCopyRegisters = 40, kMultiplyRegisters = 232;

template <int kRows_>  // of x: the N of the wgmma
struct WgmmaTile {
  static constexpr int kRows = kRows_;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kStages = kRows == 256 ? 4 : 6;
  static constexpr int kWeightBytes = kTilePanels * kStagePanelBytes, kRowBytes = kRows * kStageK;
  static constexpr int kStageBytes = kRowBytes + kWeightBytes;  // rows first
  static constexpr int kPitch = 64 + 4;  // of the sums of a row in shared memory: in different banks

  static constexpr size_t sum_bytes() { return size_t{kConsumers} * kRows * kPitch * sizeof(int32_t); }
  static constexpr size_t stage_bytes() { return size_t{kStages} * kStageBytes; }
  static constexpr size_t shared_bytes() { return stage_bytes() + 2 * kStages * sizeof(uint64_t); }
  static_assert(kRowBytes % 1024 == 0, "the swizzle repeats every 1024 bytes");
  static_assert(sum_bytes() <= stage_bytes(), "the sums take the place of the stages");
};

using LargeTile = WgmmaTile<256>;
using SmallTile = WgmmaTile<128>;

// The fewest rows for wgmma: with fewer, most of a tile is empty.
constexpr int64_t kWgmmaRows = 256;

// Tiles run in waves of one a multiprocessor. The large one reads three quarters as many bytes for its work.
constexpr bool large_tile_pays(int64_t m, int64_t n, int64_t multiprocessors) {
  auto waves = [&](int64_t rows) { return ceil_div(ceil_div(m, rows) * ceil_div(n, kTileColumns), multiprocessors); };
  return 3 * waves(LargeTile::kRows) <= 2 * waves(SmallTile::kRows);
}

}  // namespace pybatch::cuda

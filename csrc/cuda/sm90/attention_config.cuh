// Sizes of prefill attention on Hopper. No result depends on them; the steps of the softmax are those of
// cuda/attention_config.cuh.
#pragma once

#include "cuda/attention_config.cuh"
#include "cuda/sm90/pipeline.cuh"

namespace pybatch::cuda {

template <class T, int kHeadDim_>
struct PrefillConfig : AttentionConfig<T, T, kHeadDim_> {
  using Steps = AttentionConfig<T, T, kHeadDim_>;
  using Steps::kHeadDim, Steps::kTile, Steps::kQPitch;

  static constexpr int kGroupRows = 64;  // of query rows: the m of wgmma
  static constexpr int kGroups = 2;      // warpgroups that multiply; one more copies
  static constexpr int kRows = kGroups * kGroupRows;
  static constexpr int kThreads = (1 + kGroups) * kWarpgroup, kWarps = kGroups * kWarpgroup / 32;
  static constexpr int kStages = 4;  // each K and V of a tile

  // Registers of a thread once the roles are known: they share what all began with, 168 each.
  static constexpr int kCopyRegisters = 72, kMultiplyRegisters = 216;

  // Both K and V lie in rows of 64 elements, swizzled: K is [dim][token], V [half of the dims][token][dim].
  static constexpr int kRowBytes = 64 * sizeof(T), kPartBytes = kTile * kHeadDim * sizeof(T);
  static constexpr int kHalfBytes = kTile * kRowBytes;
  static_assert(kTile == 64 && kHeadDim % 64 == 0);

  // Byte offsets of shared memory: stages, totals of the rows, rows of Q, barriers, the item, what was found in V, and
  // which item is next.
  static constexpr int kTotals = 2 * kStages * kPartBytes;
  static constexpr int kQ = kTotals + kRows * kHeadDim * static_cast<int>(sizeof(float));
  static constexpr int kBarriers = kQ + kRows * kQPitch * static_cast<int>(sizeof(T));
  static constexpr int kItem = kBarriers + (2 * kStages + 2) * static_cast<int>(sizeof(uint64_t));
  static constexpr int kFound = (kItem + 48 + 15) / 16 * 16;
  static constexpr int kNext = kFound + kGroups * 2 * 4 * static_cast<int>(sizeof(uint32_t));
  static constexpr size_t kSharedBytes = kNext + 2 * sizeof(int32_t);
  static_assert(kSharedBytes <= 227 * 1024);
};

}  // namespace pybatch::cuda

// Sizes of the attention kernel, as functions of the types and the head dimension alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pybatch::cuda {

constexpr int kAttentionRows = 16;             // query rows of a warp: the m of mma.m16n8k16
constexpr int kAttentionMaxWarps = 8;          // of a block
constexpr int kAttentionStages = 2;            // K/V tiles in shared memory
constexpr int64_t kAttentionMaxPieces = 4096;  // splits of decoding sequences that are separate work items

template <class T, class KV, int kHeadDim_>
struct AttentionConfig {
  static constexpr bool kScaled = sizeof(KV) == 1;         // one scale a token and head
  static constexpr int kHeadDim = kHeadDim_;               // padded
  static constexpr int kTile = kHeadDim <= 128 ? 64 : 32;  // tokens a step of the online softmax

  // In elements. The padding keeps the rows that one instruction reads in different banks.
  static constexpr int kQPitch = kHeadDim + 8;
  static constexpr int kKPitch = kTile + (kScaled ? 16 : 8);  // K is [kHeadDim][kTile]
  static constexpr int kVPitch = kHeadDim + 8;                // V is [kTile][kHeadDim]

  // Byte offsets of shared memory: stages, then per warp its rows of Q and its output so far.
  static constexpr size_t kKBytes = kHeadDim * kKPitch * sizeof(KV);
  static constexpr size_t kVBytes = kTile * kVPitch * sizeof(KV);
  static constexpr size_t kScaleBytes = kScaled ? kTile * sizeof(uint16_t) : 0;
  static constexpr size_t kStageBytes = kKBytes + kVBytes + 2 * kScaleBytes;
  static constexpr size_t kQBytes = kAttentionRows * kQPitch * sizeof(T);
  static constexpr size_t kTotalBytes = kAttentionRows * kHeadDim * sizeof(float);

  static constexpr size_t shared_bytes(int warps) {
    return kAttentionStages * kStageBytes + warps * (kQBytes + kTotalBytes);
  }
};

}  // namespace pybatch::cuda

// Sizes of the attention kernel, as functions of the types and the head dimension alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "pybatch/kv_cache.h"

namespace pybatch::cuda {

constexpr int kAttentionRows = 16;             // query rows of a warp: the m of mma.m16n8k16
constexpr int kAttentionMaxHeadDim = 256;      // what registers and shared memory hold
constexpr int kAttentionMaxWarps = 8;          // of a block
constexpr int kAttentionStages = 2;            // K/V tiles in shared memory
constexpr int64_t kAttentionMaxPieces = 4096;  // splits of decoding sequences that are separate work items

struct Int4x2 {  // two elements of an int4 cache
  uint8_t codes;
};

template <class T, class KV, int kHeadDim_>
struct AttentionConfig {
  static constexpr bool kInt4 = std::is_same_v<KV, Int4x2>;
  static constexpr bool kScaled = sizeof(KV) == 1;         // scales for each token and head: one, of int4 one a group
  static constexpr int kHeadDim = kHeadDim_;               // padded
  static constexpr int kTile = kHeadDim <= 128 ? 64 : 32;  // tokens a step of the online softmax

  static constexpr int kGroups = kInt4 ? kHeadDim / static_cast<int>(kInt4Group) : 1;

  // In elements, of int4 in words of four bytes. The padding keeps the rows that one instruction reads in different
  // banks.
  static constexpr int kQPitch = kHeadDim + 8;
  static constexpr int kKPitch = kTile + (kInt4 || !kScaled ? 8 : 16);      // K is [kHeadDim][kTile], of int4 / 8
  static constexpr int kVPitch = kInt4 ? kHeadDim / 2 + 16 : kHeadDim + 8;  // V is [kTile][kHeadDim], of int4 / 4

  // Byte offsets of shared memory: stages, then per warp its rows of Q and its output so far.
  static constexpr size_t kKBytes = kInt4 ? kHeadDim / 8 * kKPitch * 4 : kHeadDim * kKPitch * sizeof(KV);
  static constexpr size_t kVBytes = kInt4 ? kTile / 4 * kVPitch * 4 : kTile * kVPitch * sizeof(KV);
  static constexpr size_t kScaleBytes = kScaled ? kGroups * kTile * sizeof(uint16_t) : 0;
  static constexpr size_t kStageBytes = kKBytes + kVBytes + 2 * kScaleBytes;
  static constexpr size_t kQBytes = kAttentionRows * kQPitch * sizeof(T);
  static constexpr size_t kTotalBytes = kAttentionRows * kHeadDim * sizeof(float);

  static constexpr size_t shared_bytes(int warps) {
    return kAttentionStages * kStageBytes + warps * (kQBytes + kTotalBytes);
  }
};

}  // namespace pybatch::cuda

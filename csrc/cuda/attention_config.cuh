// Sizes of the attention kernel, as functions of the types and the head dimension alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "pybatch/kv_cache.h"

namespace pybatch::cuda {

constexpr int kAttentionRows = 16;             // query rows of a warp: the m of mma.m16n8k16
constexpr int kAttentionMaxHeadDim = 256;      // what registers and shared memory hold
constexpr int kAttentionMaxWarps = 8;          // of a block, and of a multiprocessor: registers hold no more
constexpr int kAttentionStages = 3;            // in shared memory, each for K or V of a tile: one is read, two come
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

  // Rows of a tile as the cache has them: of K a dimension (of int4 eight), of V a token (of int4 four).
  static constexpr int kDimsAKRow = kInt4 ? 8 : 1, kTokensAVRow = kInt4 ? 4 : 1;
  static constexpr int kKBytesAToken = kInt4 ? 4 : sizeof(KV), kVBytesADim = kInt4 ? 2 : sizeof(KV);

  // In elements, of int4 in words of four bytes. The padding keeps the rows that one instruction reads in different
  // banks; V of 8 bits would need one that copies of 16 bytes do not allow, and has two rows in a bank.
  static constexpr int kQPitch = kHeadDim + 8;
  static constexpr int kKPitch = kTile + (kInt4 || !kScaled ? 8 : 16);
  static constexpr int kVPitch = kInt4 ? kHeadDim / 2 + 16 : kHeadDim + (kScaled ? 16 : 8);

  static constexpr int kKPitchBytes = kKPitch * kKBytesAToken;
  static constexpr int kVPitchBytes = kVPitch * (kInt4 ? 4 : sizeof(KV));

  // Byte offsets of shared memory: stages, each a part and its scales, then per warp its rows of Q, then the next item.
  static constexpr size_t kKBytes = kHeadDim / kDimsAKRow * kKPitchBytes;
  static constexpr size_t kVBytes = kTile / kTokensAVRow * kVPitchBytes;
  static constexpr size_t kPartBytes = kKBytes > kVBytes ? kKBytes : kVBytes;
  static constexpr size_t kScaleBytes = kScaled ? kGroups * kTile * sizeof(uint16_t) : 0;
  static constexpr size_t kStageBytes = kPartBytes + kScaleBytes;
  static constexpr size_t kQBytes = kAttentionRows * kQPitch * sizeof(T);

  static constexpr size_t next_item(int warps) { return kAttentionStages * kStageBytes + warps * kQBytes; }
  static constexpr size_t shared_bytes(int warps) { return next_item(warps) + 16; }
};

}  // namespace pybatch::cuda

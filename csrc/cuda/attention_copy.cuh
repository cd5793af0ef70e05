// Copies of K and V, tile by tile, from the blocks of the cache to shared memory.
#pragma once

#include "cuda/attention_config.cuh"
#include "cuda/common.cuh"
#include "pybatch/kv_cache.h"

namespace pybatch::cuda {

__device__ __forceinline__ int log2_at_run_time(int power) { return 31 - __clz(power); }
constexpr int log2_of(int power) { return power <= 1 ? 0 : 1 + log2_of(power / 2); }

// The tokens of one sequence and KV head. Whole blocks are copied: those that hold tokens of [begin, end), and zeros
// where others would be. All threads of a block of threads call together; their warps are a power of two.
template <class Config>
class TileCopy {
 public:
  // table: the sequence's row of the block table.
  __device__ __forceinline__ TileCopy(const KvCache& cache, const int32_t* table, int kv_head, int begin, int end)
      : cache_(cache),
        table_(table),
        kv_head_(kv_head),
        begin_(begin),
        end_(end),
        shift_(log2_at_run_time(static_cast<int>(cache.block_size))) {
    const int first = (begin >> shift_) & -kWarp;
    blocks_ = block_at(first);
    next_blocks_ = block_at(first + kWarp);
  }

  // Start the copy of K, then of V, of the tile that begins with token `first`. Tiles ascend.
  __device__ __forceinline__ void copy_k(int first, unsigned char* stage) {
    if ((first & ((kWarp << shift_) - 1)) == 0 && first > begin_) {
      blocks_ = next_blocks_;
      next_blocks_ = block_at((first >> shift_) + kWarp);
    }
    copy<true>(first, stage);
  }
  __device__ __forceinline__ void copy_v(int first, unsigned char* stage) const { copy<false>(first, stage); }

 private:
  static constexpr int kTile = Config::kTile, kTileShift = log2_of(kTile);
  static constexpr int kRunShift = log2_of(16 / Config::kKBytesAToken);  // of the tokens in 16 bytes of K

  template <bool kKeys>
  __device__ __forceinline__ void copy(int first, unsigned char* stage) const {
    if constexpr (Config::kScaled) copy_scales<kKeys>(first, stage + Config::kPartBytes);
    if constexpr (!Config::kInt4) {
      const bool whole_blocks = shift_ >= 4 && shift_ <= kTileShift && dim() == Config::kHeadDim;
      if (whole_blocks && first >= begin_ && first + kTile <= end_) {
        const int warps = static_cast<int>(blockDim.x) / kWarp;
        return shift_ == 4 && warps == 1 ? copy_blocks<kKeys>(first, stage, 4, 1)
                                         : copy_blocks<kKeys>(first, stage, shift_, warps);
      }
    }
    const bool in_16s = Config::kInt4 || !Config::kScaled || (shift_ >= kRunShift && dim() % 16 == 0);
    in_16s ? copy_rows<kKeys, 16>(first, stage) : copy_rows<kKeys, 8>(first, stage);
  }

  __device__ __forceinline__ int dim() const { return static_cast<int>(cache_.head_dim); }

  // The lane's of the 32 blocks from the page-th of the sequence on.
  __device__ __forceinline__ int block_at(int page) const {
    page += static_cast<int>(threadIdx.x) % kWarp;
    return page << shift_ < end_ && (page + 1) << shift_ > begin_ ? table_[page] : 0;
  }

  // This many bytes behind the first of the head, in a block that the lanes have.
  template <bool kKeys>
  __device__ __forceinline__ const unsigned char* head_of(int page, int offset) const {
    constexpr uint32_t kUnit = Config::kInt4 ? 1 : Config::kVBytesADim;  // that strides are in
    const uint32_t stride = static_cast<uint32_t>(kKeys ? cache_.k_block_stride : cache_.v_block_stride) * kUnit;
    const uint32_t block = __shfl_sync(kAllLanes, blocks_, page % kWarp);
    const int bytes = (dim() * Config::kVBytesADim << shift_) / Config::kTokensAVRow;
    return static_cast<const unsigned char*>(kKeys ? cache_.k : cache_.v) + static_cast<uint64_t>(block) * stride +
           (kv_head_ * bytes + offset);
  }

  // A tile that is made of whole blocks, each one run of bytes of which neighbouring lanes copy neighbouring pieces.
  // Each lane stays in one block, so that its addresses are found once. For K a block has its share of the lanes, for V
  // each eight lanes have a quarter of the tile's tokens. `shift` is shift_, `warps` those that share the work; where
  // they are constants the loop has no arithmetic.
  template <bool kKeys>
  __device__ __forceinline__ void copy_blocks(int first, unsigned char* to, int shift, int warps) const {
    constexpr int kVRowBytes = Config::kHeadDim * Config::kVBytesADim, kSegment = 128;
    constexpr int kSteps = kTile * kVRowBytes / (kWarp * 16);
    const int lane = opaque(static_cast<int>(threadIdx.x) % kWarp), in_block = (1 << shift) - 1;
    const unsigned char* from;
    int from_step, to_step;
    if constexpr (kKeys) {
      const int lanes_shift = shift + 5 - kTileShift, mine = lane & ((1 << lanes_shift) - 1);
      const int row_shift = shift - kRunShift, block = lane >> lanes_shift;
      from = head_of<true>((first >> shift) + block, mine * 16);
      from_step = 16 << lanes_shift;
      to += (mine >> row_shift) * Config::kKPitchBytes + (block << shift) * Config::kKBytesAToken +
            (mine & ((1 << row_shift) - 1)) * 16;
      to_step = Config::kHeadDim / kSteps * Config::kKPitchBytes;
    } else {
      const int token = lane / 8 * (kTile / 4), mine = lane % 8 * 16;
      from = head_of<false>((first + token) >> shift, ((first + token) & in_block) * kVRowBytes + mine);
      from_step = kSegment;
      to += (token + mine / kVRowBytes) * Config::kVPitchBytes + mine % kVRowBytes;
      to_step = 0;
    }
    auto to_offset = [&](int i) {
      return kKeys ? i * to_step : i * kSegment / kVRowBytes * Config::kVPitchBytes + i * kSegment % kVRowBytes;
    };
    const int steps = kSteps / warps;
    if (warps > 1) {
      const int skipped = static_cast<int>(threadIdx.x) / kWarp * steps;
      from += skipped * from_step;
      to += to_offset(skipped);
    }
    constexpr int kTogether = kSteps / kAttentionMaxWarps;
#pragma unroll
    for (int i = 0; i < steps; i += kTogether) {
#pragma unroll
      for (int j = 0; j < kTogether; ++j) cp_async_16(to + to_offset(i + j), from + (i + j) * from_step);
    }
  }

  // Any tile, row by row.
  template <bool kKeys, int kPiece>
  __device__ __forceinline__ void copy_rows(int first, unsigned char* to) const {
    const int thread = opaque(static_cast<int>(threadIdx.x)), run_shift = shift_ < kTileShift ? shift_ : kTileShift;
    const int pieces_shift = kKeys ? run_shift + log2_of(Config::kKBytesAToken) - log2_of(kPiece)
                                   : log2_of(Config::kHeadDim * Config::kVBytesADim / kPiece);
    const int rows = kKeys ? Config::kHeadDim / Config::kDimsAKRow : (1 << run_shift) / Config::kTokensAVRow;
    const int bytes = kKeys ? Config::kKBytesAToken << shift_ : dim() * Config::kVBytesADim;  // of a row in the cache
    const int column = (thread & ((1 << pieces_shift) - 1)) * kPiece;
    const int valid_rows = kKeys ? dim() / Config::kDimsAKRow : column < bytes ? rows : 0;
    constexpr int kPitch = kKeys ? Config::kKPitchBytes : Config::kVPitchBytes;
    for (int token = 0; token < kTile; token += 1 << run_shift) {
      const int in_block = (first + token) & ((1 << shift_) - 1);
      const bool valid = first + token < end_ && first + token + (1 << run_shift) > begin_;
      const unsigned char* from = head_of<kKeys>((first + token) >> shift_, column);
      unsigned char* at = to + column;
      if constexpr (kKeys) {
        from += in_block * Config::kKBytesAToken;
        at += token * Config::kKBytesAToken;
      } else {
        from += in_block / Config::kTokensAVRow * bytes;
        at += token / Config::kTokensAVRow * kPitch;
      }
      for (int row = thread >> pieces_shift; row < rows; row += static_cast<int>(blockDim.x) >> pieces_shift) {
        copy_piece<kPiece>(at + row * kPitch, from + row * bytes, valid && row < valid_rows);
      }
    }
  }

  template <int kBytes>
  static __device__ __forceinline__ void copy_piece(void* to, const void* from, bool valid) {
    kBytes == 8 ? cp_async_8(to, from, valid) : cp_async_16(to, from, valid);
  }

  template <bool kKeys>
  __device__ __forceinline__ void copy_scales(int first, unsigned char* to) const {
    constexpr int kRuns = kTile / kRun;  // of a group
    const int i = opaque(static_cast<int>(threadIdx.x)), group = i / kRuns, token = first + i % kRuns * kRun;
    const int64_t block = __shfl_sync(kAllLanes, blocks_, (token >> shift_) % kWarp);
    if (i >= Config::kGroups * kRuns) return;
    const int groups = static_cast<int>(cache_.groups());
    const int64_t stride = kKeys ? cache_.k_scale_block_stride : cache_.v_scale_block_stride;
    const bool valid = token < end_ && token + kRun > begin_ && group < groups;
    const f16* from = static_cast<const f16*>(kKeys ? cache_.k_scale : cache_.v_scale) + block * stride +
                      ((kv_head_ * groups + group) << shift_) + (token & ((1 << shift_) - 1));
    cp_async_16(to + 16 * i, from, valid);
  }

  const KvCache& cache_;
  const int32_t* table_;
  int kv_head_, begin_, end_;
  int shift_;                 // log2 of the block size
  int blocks_, next_blocks_;  // the lane's of the 32 blocks in use, and of the 32 that follow
};

}  // namespace pybatch::cuda

// The work list of paged attention, which every block finds for itself from the sequence lengths: a CUDA graph needs no
// plan. A sequence with one query is cut at the splits of kAttentionSplit tokens into separate pieces, as far as there
// is room for their partial results; this does not change the bits, see attention.cu.
#pragma once

#include "cuda/attention_config.cuh"
#include "cuda/common.cuh"
#include "pybatch/attention.h"

namespace pybatch::cuda {

inline int64_t max_pieces(const PagedAttentionParams& p) {
  const int64_t splits = ceil_div(p.block_table_stride * p.cache.block_size, kAttentionSplit);
  const int64_t pieces = splits > 1 ? splits * p.sequences : 0;
  return pieces < kAttentionMaxPieces ? pieces : kAttentionMaxPieces;
}

// Partial results of pieces.
struct Workspace {
  int64_t max_pieces;
  float* outputs;  // [max_pieces][heads][head_dim]
  float2* sums;    // [max_pieces][heads], each with its maximum before it

  Workspace(const PagedAttentionParams& p, void* memory)
      : max_pieces(cuda::max_pieces(p)),
        outputs(static_cast<float*>(memory)),
        sums(reinterpret_cast<float2*>(outputs + max_pieces * p.heads * p.cache.head_dim)) {}
};

// The first split that a query at this position sees.
__device__ __forceinline__ int first_split(const PagedAttentionParams& p, int position) {
  const int window = static_cast<int>(p.window);
  return window > 0 && position >= window ? (position - window + 1) / static_cast<int>(kAttentionSplit) : 0;
}

// The splits that the query of a sequence with one query sees.
__device__ __forceinline__ int pieces_of(const PagedAttentionParams& p, int length) {
  const int last = length - 1;
  return last / static_cast<int>(kAttentionSplit) - first_split(p, last) + 1;
}

// Whose work is in which launch: sequences with one query (all, if none has more than one) in that of small blocks.
enum class Phase { decode, prefill };

// Goes through the items of a phase: each one sequence's, of one KV head, `rows` query rows (tokens times heads of a
// group) and, of a cut sequence, one piece. 32 sequences are looked at together, one a lane; all lanes of a warp call.
//
// Each block begins with one item and asks for more by a counter, as it gets through them. Whoever asks last, who is
// told of the number of items itself, sets it back to 0: launches on one stream take turns with it.
class WorkList {
 public:
  __device__ __forceinline__ WorkList(const PagedAttentionParams& p, const Workspace& work, Phase phase, int rows)
      : p_(p), max_pieces_(static_cast<int>(work.max_pieces)), phase_(phase), rows_(rows) {}

  // Goes on to an item; false if there are fewer.
  __device__ __forceinline__ bool find(int item) {
    while (item >= end_) {
      first_ += kWarp;
      if (first_ >= p_.sequences) return false;
      look();
    }
    owner_ = __ffs(static_cast<int>(__ballot_sync(kAllLanes, items_end_ > item))) - 1;
    return true;
  }

  // By one thread of the block.
  static __device__ __forceinline__ int first() { return static_cast<int>(blockIdx.x); }
  __device__ __forceinline__ int next() const { return static_cast<int>(gridDim.x) + atomicAdd(p_.counters, 1); }
  __device__ __forceinline__ void end(int item) const {  // which find() did not find
    if (item - static_cast<int>(gridDim.x) == end_ - 1) *p_.counters = 0;
  }

  // Of the item found: its sequence, its number among the sequence's items, and where the partial results of the
  // sequence's pieces begin, or -1.
  __device__ __forceinline__ int sequence() const { return first_ + owner_; }
  __device__ __forceinline__ int local(int item) const { return item - __shfl_sync(kAllLanes, items_start_, owner_); }
  __device__ __forceinline__ int pieces_start() const { return __shfl_sync(kAllLanes, pieces_start_, owner_); }

 private:
  // Inclusive sum over the lanes.
  static __device__ __forceinline__ int warp_scan(int x) {
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int below = __shfl_up_sync(kAllLanes, x, offset);
      if (static_cast<int>(threadIdx.x) % kWarp >= offset) x += below;
    }
    return x;
  }

  __device__ __forceinline__ void look() {
    const int s = first_ + static_cast<int>(threadIdx.x) % kWarp,
              group = static_cast<int>(p_.heads / p_.cache.kv_heads);
    int queries = 0, pieces = 0;
    if (s < p_.sequences) {
      queries = p_.query_start[s + 1] - p_.query_start[s];
      if (queries == 1) pieces = pieces_of(p_, p_.seq_lens[s]);
    }
    const int pieces_end = pieces_ + warp_scan(pieces);
    const bool cut = pieces > 1 && pieces_end <= max_pieces_;
    const Phase phase = queries == 1 || p_.tokens <= p_.sequences ? Phase::decode : Phase::prefill;
    const int items = (queries * group + rows_ - 1) / rows_ * static_cast<int>(p_.cache.kv_heads) * (cut ? pieces : 1);
    const int mine = phase == phase_ ? items : 0, items_end = end_ + warp_scan(mine);
    items_start_ = items_end - mine;
    items_end_ = items_end;
    pieces_start_ = cut ? pieces_end - pieces : -1;
    pieces_ = __shfl_sync(kAllLanes, pieces_end, kWarp - 1);
    end_ = __shfl_sync(kAllLanes, items_end, kWarp - 1);
  }

  const PagedAttentionParams& p_;
  int max_pieces_;
  Phase phase_;
  int rows_;
  int first_ = -kWarp, end_ = 0;  // of the 32 sequences: the first, and the items up to their end
  // Volatile, so in local memory: what is looked at once an item is to keep no registers.
  volatile int pieces_ = 0;                                           // up to the end of the 32
  volatile int items_start_ = 0, items_end_ = 0, pieces_start_ = -1;  // of the lane's sequence
  int owner_ = 0;
};

}  // namespace pybatch::cuda

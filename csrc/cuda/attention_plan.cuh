// The work list of paged attention, built on the device from the sequence lengths, so that a CUDA graph captures it.
// A sequence with one query is cut at the splits of kAttentionSplit tokens into separate pieces, as far as there is
// room for their partial results; this does not change the bits, see attention.cu.
#pragma once

#include "cuda/attention_config.cuh"
#include "cuda/common.cuh"
#include "pybatch/attention.h"

namespace pybatch::cuda {

struct WorkList {
  int32_t* decode_start;   // [sequences + 1], items for blocks of one warp
  int32_t* prefill_start;  // [sequences + 1], items for larger blocks
  int32_t* pieces_start;   // [sequences], where a sequence's partial results begin; -1: not cut
  float* partials;         // [max_pieces][heads][head_dim + 2]: output, maximum, sum
  int64_t max_pieces;
};

struct WorkListSize {
  int64_t list;  // numbers in each list, padded so that what follows is aligned
  int64_t max_pieces, floats;
};

inline WorkListSize work_list_size(const PagedAttentionParams& p) {
  const int64_t list = ceil_div(p.sequences + 1, 4) * 4;
  const int64_t splits = ceil_div(p.block_table_stride * p.cache.block_size, kAttentionSplit);
  const int64_t pieces = splits > 1 ? splits * p.sequences : 0;
  const int64_t max_pieces = pieces < kAttentionMaxPieces ? pieces : kAttentionMaxPieces;
  return {list, max_pieces, max_pieces * p.heads * (p.cache.head_dim + 2)};
}

inline WorkList work_list(const PagedAttentionParams& p, void* workspace) {
  const WorkListSize size = work_list_size(p);
  auto* start = static_cast<int32_t*>(workspace);
  auto* partials = reinterpret_cast<float*>(start + 3 * size.list);
  return {start, start + size.list, start + 2 * size.list, partials, size.max_pieces};
}

// The first split that a query at this position sees.
__device__ __forceinline__ int64_t first_split(const PagedAttentionParams& p, int64_t position) {
  return p.window > 0 && position >= p.window ? (position - p.window + 1) / kAttentionSplit : 0;
}

// Fills the list. decode_rows, prefill_rows: query rows (tokens times heads of a group) of an item. A call with no more
// tokens than sequences is decode only; then all items are in the first list.
void plan_attention(const PagedAttentionParams&, const WorkList&, int decode_rows, int prefill_rows, cudaStream_t);

// The sequence that an item belongs to, at or after `from`. All lanes of a warp call together.
__device__ __forceinline__ int64_t sequence_of(const int32_t* start, int64_t sequences, int64_t item, int64_t from) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t base = from;; base += kWarp) {
    const bool ends_after = base + lane < sequences && start[base + lane + 1] > item;
    const uint32_t lanes = __ballot_sync(kAllLanes, ends_after);
    if (lanes != 0) return base + __ffs(static_cast<int>(lanes)) - 1;
  }
}

}  // namespace pybatch::cuda

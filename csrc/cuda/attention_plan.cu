#include "cuda/attention_plan.cuh"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

// Inclusive sum over the lanes of a warp.
__device__ __forceinline__ int warp_scan(int x, int lane) {
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int below = __shfl_up_sync(kAllLanes, x, offset);
    if (lane >= offset) x += below;
  }
  return x;
}

// One warp.
__global__ void __launch_bounds__(kWarp)
    plan_kernel(PagedAttentionParams p, WorkList work, int decode_rows, int prefill_rows) {
  const int lane = threadIdx.x;
  const int64_t group = p.heads / p.cache.kv_heads;
  int decode_items = 0, prefill_items = 0, all_pieces = 0;
  for (int64_t base = 0; base < p.sequences; base += kWarp) {
    const int64_t s = base + lane;
    int queries = 0, pieces = 0;
    if (s < p.sequences) {
      queries = p.query_start[s + 1] - p.query_start[s];
      if (queries == 1) {
        const int64_t last = p.seq_lens[s] - 1;
        pieces = static_cast<int>(last / kAttentionSplit - first_split(p, last) + 1);
      }
    }
    const int pieces_end = all_pieces + warp_scan(pieces, lane);
    const bool cut = pieces > 1 && pieces_end <= work.max_pieces;
    const bool decode = queries == 1 || p.tokens <= p.sequences;
    const int64_t items = ceil_div(queries * group, decode ? decode_rows : prefill_rows) * p.cache.kv_heads;
    const int64_t decodes = decode ? items * (cut ? pieces : 1) : 0, prefills = decode ? 0 : items;
    const int decode_end = decode_items + warp_scan(static_cast<int>(decodes), lane);
    const int prefill_end = prefill_items + warp_scan(static_cast<int>(prefills), lane);
    if (s < p.sequences) {
      work.decode_start[s + 1] = decode_end;
      work.prefill_start[s + 1] = prefill_end;
      work.pieces_start[s] = cut ? pieces_end - pieces : -1;
    }
    decode_items = __shfl_sync(kAllLanes, decode_end, kWarp - 1);
    prefill_items = __shfl_sync(kAllLanes, prefill_end, kWarp - 1);
    all_pieces = __shfl_sync(kAllLanes, pieces_end, kWarp - 1);
  }
  if (lane == 0) work.decode_start[0] = work.prefill_start[0] = 0;
}

}  // namespace

void plan_attention(const PagedAttentionParams& p, const WorkList& work, int decode_rows, int prefill_rows,
                    cudaStream_t stream) {
  launch(plan_kernel, dim3(1), dim3(kWarp), 0, stream, p, work, decode_rows, prefill_rows);
}

}  // namespace pybatch::cuda

// paged_attention where the tensor-core kernel does not apply (fp32, mixed types): a warp takes one query head of one
// token and passes over the tokens it sees, 32 at a time, with fp32 arithmetic throughout.
#include "cuda/common.cuh"
#include "cuda/launch.cuh"
#include "pybatch/attention.h"

namespace pybatch::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 256;
constexpr int kDimsALane = kMaxHeadDim / kWarp;

__global__ void __launch_bounds__(kWarps* kWarp) simple_attention_kernel(PagedAttentionParams p) {
  const KvCache& cache = p.cache;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, dim = static_cast<int>(cache.head_dim);
  const int64_t token = blockIdx.x, head = static_cast<int64_t>(blockIdx.y) * kWarps + warp;
  if (head >= p.heads) return;
  const int64_t kv_head = head / (p.heads / cache.kv_heads), size = cache.block_size;
  int64_t sequence = 0;
  while (p.query_start[sequence + 1] <= token) ++sequence;
  const int64_t position = p.seq_lens[sequence] - (p.query_start[sequence + 1] - token);
  const int64_t begin = p.window > 0 && position >= p.window ? position - p.window + 1 : 0;
  const int32_t* blocks = p.block_tables + sequence * p.block_table_stride;

  float* q = dynamic_shared<float>() + warp * kMaxHeadDim;
  for (int d = lane; d < dim; d += kWarp) {
    q[d] = load_as(p.q.dtype, p.q.data, token * p.q.row_stride + head * dim + d) * p.scale;
  }
  __syncwarp();

  float max = p.sinks != nullptr ? p.sinks[head] : -INFINITY;
  float sum = p.sinks != nullptr && lane == 0 ? 1.0f : 0.0f;
  float out[kDimsALane] = {};
  for (int64_t first = begin / kWarp * kWarp; first <= position; first += kWarp) {  // edges at absolute positions
    const int64_t mine = first + lane;
    const bool seen = mine >= begin && mine <= position;
    const int64_t block = seen ? blocks[mine / size] : 0, offset = seen ? mine % size : 0;
    float logit = -INFINITY;
    if (seen) {
      logit = 0.0f;
      const int64_t at = block * cache.k_block_stride + kv_head * dim * size + offset;
      for (int d = 0; d < dim; ++d) logit = fmaf(q[d], load_as(cache.dtype, cache.k, at + d * size), logit);
      if (cache.has_scales()) {
        const int64_t at_scale = block * cache.k_scale_block_stride + kv_head * size + offset;
        logit *= to_float(static_cast<const f16*>(cache.k_scale)[at_scale]);
      }
      if (p.soft_cap > 0.0f) logit = p.soft_cap * tanhf(logit / p.soft_cap);
    }
    const float before = max;
    max = fmaxf(max, warp_reduce<Largest>(logit));
    const float rescale = expf(before - max);
    float weight = seen ? expf(logit - max) : 0.0f;
    sum = fmaf(sum, rescale, weight);
    if (cache.has_scales() && seen) {
      const int64_t at_scale = block * cache.v_scale_block_stride + kv_head * size + offset;
      weight *= to_float(static_cast<const f16*>(cache.v_scale)[at_scale]);
    }
    for (int i = 0; i < kDimsALane; ++i) out[i] *= rescale;
    for (int i = 0; i < kWarp; ++i) {
      const float w = __shfl_sync(kAllLanes, weight, i);
      const int64_t its_block = __shfl_sync(kAllLanes, block, i), its_offset = __shfl_sync(kAllLanes, offset, i);
      if (first + i < begin || first + i > position) continue;  // other sequences' values may be there
      const int64_t at = its_block * cache.v_block_stride + (kv_head * size + its_offset) * dim;
#pragma unroll
      for (int j = 0; j < kDimsALane; ++j) {
        const int d = lane + j * kWarp;
        if (d < dim) out[j] = fmaf(w, load_as(cache.dtype, cache.v, at + d), out[j]);
      }
    }
  }
  const float inverse = 1.0f / warp_reduce<Add>(sum);
#pragma unroll
  for (int j = 0; j < kDimsALane; ++j) {
    const int d = lane + j * kWarp;
    if (d < dim) store_as(p.out.dtype, p.out.data, token * p.out.row_stride + head * dim + d, out[j] * inverse);
  }
}

}  // namespace

void paged_attention_simple(const PagedAttentionParams& p, cudaStream_t stream) {
  const dim3 grid(p.tokens, ceil_div(p.heads, kWarps));
  launch(simple_attention_kernel, grid, dim3(kWarps * kWarp), kWarps * kMaxHeadDim * sizeof(float), stream, p);
}

}  // namespace pybatch::cuda

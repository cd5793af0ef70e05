// paged_attention where the tensor-core kernel does not apply (fp32, mixed types, heads of more than 256 elements): a
// warp takes one query head of one token and passes over the tokens it sees, 32 at a time, with fp32 arithmetic
// throughout.
#include "cuda/kv_cache.cuh"
#include "cuda/launch.cuh"
#include "pybatch/attention.h"

namespace pybatch::cuda {
namespace {

constexpr int kWarps = 4;

// Four blocks: left to itself, the compiler aims at more, and spills registers.
template <int kDimsALane>
__global__ void __launch_bounds__(kWarps* kWarp, 4) simple_attention_kernel(PagedAttentionParams p) {
  begin_kernel();
  const KvCache& cache = p.cache;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, dim = static_cast<int>(cache.head_dim);
  const int head = static_cast<int>(blockIdx.y) * kWarps + warp, heads = static_cast<int>(p.heads);
  if (head >= heads) return;
  const int64_t token = blockIdx.x, kv_head = head / (heads / static_cast<int>(cache.kv_heads)),
                size = cache.block_size;
  int64_t sequence = 0;
  while (p.query_start[sequence + 1] <= token) ++sequence;
  const int64_t position = p.seq_lens[sequence] - (p.query_start[sequence + 1] - token);
  const int64_t begin = p.window > 0 && position >= p.window ? position - p.window + 1 : 0;
  const int32_t* blocks = p.block_tables + sequence * p.block_table_stride;
  const int together = scaled_together(cache), shift = 31 - __clz(static_cast<int>(size));

  float* q = dynamic_shared<float>() + warp * kDimsALane * kWarp;
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
    const int64_t slot = seen ? static_cast<int64_t>(blocks[mine >> shift]) << shift | (mine & (size - 1)) : 0;
    float logit = -INFINITY;
    if (seen) {
      const int64_t block = slot >> shift, offset = slot & (size - 1);
      logit = 0.0f;
      for (int d = 0; d < dim;) {
        const int end = d + together < dim ? d + together : dim;
        const float scale = key_scale(cache, block, kv_head, offset, d / together);
        float part = 0.0f;
        for (; d < end; ++d) part = fmaf(q[d], key_code(cache, block, kv_head, offset, d), part);
        logit = fmaf(part, scale, logit);
      }
      if (p.soft_cap > 0.0f) logit = p.soft_cap * tanhf(logit / p.soft_cap);
    }
    const float before = max;
    max = fmaxf(max, warp_reduce<Largest>(logit));
    const float rescale = expf(before - max), weight = seen ? expf(logit - max) : 0.0f;
    sum = fmaf(sum, rescale, weight);
    for (int i = 0; i < kDimsALane; ++i) out[i] *= rescale;
    for (int i = 0; i < kWarp; ++i) {
      if (first + i < begin || first + i > position) continue;  // other sequences' values may be there
      const float w = __shfl_sync(kAllLanes, weight, i);
      const int64_t its_slot = __shfl_sync(kAllLanes, slot, i), block = its_slot >> shift,
                    offset = its_slot & (size - 1);
#pragma unroll
      for (int j = 0; j < kDimsALane; ++j) {
        const int d = lane + j * kWarp;
        if (d >= dim) continue;
        const float scaled = w * value_scale(cache, block, kv_head, offset, d / together);
        out[j] = fmaf(scaled, value_code(cache, block, kv_head, offset, d), out[j]);
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
  const bool wide = p.cache.head_dim > kMaxHeadDim / 2;
  const auto kernel =
      wide ? simple_attention_kernel<kMaxHeadDim / kWarp> : simple_attention_kernel<kMaxHeadDim / 2 / kWarp>;
  const int64_t floats = kWarps * (wide ? kMaxHeadDim : kMaxHeadDim / 2);
  launch(kernel, grid, dim3(kWarps * kWarp), floats * sizeof(float), stream, p);
}

}  // namespace pybatch::cuda

// paged_attention on the tensor cores (FlashAttention-2, Dao 2023), for prefill, chunked prefill and decode alike.
//
// Each split of kAttentionSplit tokens is an online softmax of its own, merged into the row's total in ascending order.
// A sequence with one query is cut at the splits into pieces for blocks of one warp, the last of which to finish does
// the same merges in the same order, so that a row's bits do not depend on how it was computed. Steps in which a row
// sees nothing do not change a bit of it.
#include "cuda/attention_plan.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace pybatch::cuda {

void paged_attention_simple(const PagedAttentionParams&, cudaStream_t);  // attention_simple.cu

// By the type of the KV cache: attention_16bit.cu, attention_int8.cu, attention_e4m3.cu, attention_int4.cu.
void attend_16bit(const PagedAttentionParams&, const Workspace&, cudaStream_t);
void attend_int8(const PagedAttentionParams&, const Workspace&, cudaStream_t);
void attend_e4m3(const PagedAttentionParams&, const Workspace&, cudaStream_t);
void attend_int4(const PagedAttentionParams&, const Workspace&, cudaStream_t);

namespace {

// Copies need aligned runs of 16 bytes, of 8-bit types of eight where rows are not whole 16s; and strides in 32 bits.
bool can_be_copied(const KvCache& cache) {
  const int64_t size = size_of(cache.dtype);
  const bool in_8s = cache.dtype != DType::i4 && size == 1 && (cache.block_size < 16 || cache.head_dim % 16 != 0);
  auto fits = [](const void* data, int64_t stride, int64_t run) {
    return reinterpret_cast<uintptr_t>(data) % run == 0 && stride % run == 0 && stride <= UINT32_MAX;
  };
  auto scales_fit = [&](const void* data, int64_t block_stride) { return fits(data, 2 * block_stride, 16); };
  return fits(cache.k, size * cache.k_block_stride, in_8s ? 8 : 16) &&
         fits(cache.v, size * cache.v_block_stride, in_8s ? 8 : 16) &&
         scales_fit(cache.k_scale, cache.k_scale_block_stride) && scales_fit(cache.v_scale, cache.v_scale_block_stride);
}

}  // namespace

size_t paged_attention_workspace(const PagedAttentionParams& p) {
  return max_pieces(p) * p.heads * (p.cache.head_dim + 2) * sizeof(float);
}

void paged_attention(const PagedAttentionParams& p, void* workspace, cudaStream_t stream) {
  if (p.tokens == 0) return;
  const bool same_type = p.cache.dtype == p.q.dtype || p.cache.has_scales();
  const bool wide = p.cache.head_dim > kAttentionMaxHeadDim;
  if (p.q.dtype == DType::f32 || !same_type || wide || !can_be_copied(p.cache))
    return paged_attention_simple(p, stream);
  const Workspace work(p, workspace);
  const auto attend = p.cache.dtype == DType::i8     ? attend_int8
                      : p.cache.dtype == DType::e4m3 ? attend_e4m3
                      : p.cache.dtype == DType::i4   ? attend_int4
                                                     : attend_16bit;
  attend(p, work, stream);
}

}  // namespace pybatch::cuda

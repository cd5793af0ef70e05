// The arithmetic of the online softmax (Milakov & Gimelshein 2018). Weights are powers of two of logits in units of
// log2 e.
#pragma once

#include "cuda/common.cuh"
#include "pybatch/attention.h"

namespace pybatch::cuda {

// What the two sides of a merge are multiplied by, and their common maximum.
struct MergeWeights {
  float max, total, part;
};
__device__ __forceinline__ MergeWeights merge_weights(float total_max, float part_max) {
  const float max = fmaxf(total_max, part_max), base = max == -INFINITY ? 0.0f : max;
  return {max, ex2_approx(total_max - base), ex2_approx(part_max - base)};
}
__device__ __forceinline__ float merge(const MergeWeights& w, float total, float part) {
  return fmaf(total, w.total, part * w.part);
}

// 1 / sum, with the head's sink in the sum: a logit that has no value.
__device__ __forceinline__ float inverse_sum(const PagedAttentionParams& p, int64_t head, float max, float sum) {
  if (p.sinks == nullptr) return sum > 0.0f ? 1.0f / sum : 0.0f;
  const MergeWeights w = merge_weights(max, p.sinks[head] * kLog2E);
  return w.total / merge(w, sum, 1.0f);
}

// The lanes of a row are four neighbours.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

}  // namespace pybatch::cuda

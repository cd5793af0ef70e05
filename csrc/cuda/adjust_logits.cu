// adjust_logits: a block takes one row after the other. It has a count for every token; only those in the row's history
// are set and read.
#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 128;  // and so many rows of counts

// Ids may repeat: the first of each adds up all of them, in their order.
__device__ __forceinline__ void add_biases(const AdjustLogitsParams& p, int64_t row, float* logits) {
  const int64_t begin = p.bias_start[row], end = p.bias_start[row + 1];
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const int64_t id = p.bias_ids[i];
    bool first = true;
    for (int64_t j = begin; j < i && first; ++j) first = p.bias_ids[j] != id;
    if (!first) continue;
    float logit = logits[id];
    for (int64_t j = i; j < end; ++j) {
      if (p.bias_ids[j] == id) logit += p.bias_values[j];
    }
    logits[id] = logit;
  }
}

__global__ void __launch_bounds__(kThreads) adjust_logits_kernel(AdjustLogitsParams p, int32_t* counts) {
  begin_kernel();
  constexpr int32_t kDone = -1;
  int32_t* count = counts + blockIdx.x * p.vocab;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    float* logits = p.logits + row * p.row_stride;
    const int64_t begin = p.history_start[row], output = p.output_start[row], end = p.history_start[row + 1];
    add_biases(p, row, logits);
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) count[p.history[i]] = 0;
    __syncthreads();
    for (int64_t i = output + threadIdx.x; i < end; i += kThreads) atomicAdd(&count[p.history[i]], 1);
    __syncthreads();
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const int64_t id = p.history[i];
      const int32_t seen = atomicExch(&count[id], kDone);
      if (seen == kDone) continue;
      float logit = logits[id];
      logit = logit > 0.0f ? logit / p.repetition[row] : logit * p.repetition[row];
      if (seen > 0) logit -= p.presence[row] + p.frequency[row] * static_cast<float>(seen);
      logits[id] = logit;
    }
    __syncthreads();
  }
}

int64_t blocks(const AdjustLogitsParams& p) { return p.rows < kMaxBlocks ? p.rows : kMaxBlocks; }

}  // namespace

size_t adjust_logits_workspace(const AdjustLogitsParams& p) { return blocks(p) * p.vocab * sizeof(int32_t); }

void adjust_logits(const AdjustLogitsParams& p, void* workspace, cudaStream_t stream) {
  launch(adjust_logits_kernel, dim3(blocks(p)), dim3(kThreads), 0, stream, p, static_cast<int32_t*>(workspace));
}

}  // namespace pybatch::cuda

// token_logprobs: a block a row; each of the largest is found as the largest below the one before.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/logits.cuh"

namespace pybatch::cuda {
namespace {

__global__ void __launch_bounds__(kMaxLogitThreads) token_logprobs_kernel(TokenLogprobsParams p) {
  uint64_t* scratch = dynamic_shared<uint64_t>();
  const int64_t r = blockIdx.x, token = p.tokens[r];
  const LogitRow row = {p.logits + r * p.row_stride, p.vocab};
  uint64_t key = largest_key(row, ~uint64_t{0}, scratch);
  const float largest = logit_of(key), chosen = row.at(token);
  double log_mass = 0;
  if (largest > -INFINITY) {
    auto weight = [&](float x) { return softmax_weight(x, largest, 1.0f); };
    const double mass = static_cast<double>(sum_from(row, 0, weight, scratch)) * 0x1p-40;
    log_mass = static_cast<double>(largest) + log(mass);
  }
  auto logprob = [&](float logit) { return static_cast<float>(static_cast<double>(logit) - log_mass); };
  const uint64_t rank = sum_from(row, key_of(chosen, token), [](float) { return uint64_t{1}; }, scratch);
  if (threadIdx.x == 0) {
    p.logprob[r] = logprob(chosen);
    p.rank[r] = static_cast<int64_t>(rank);
  }
  for (int64_t i = 0; i < p.num_top; ++i) {
    if (i > 0) key = largest_key(row, key, scratch);
    if (threadIdx.x == 0) {
      p.top_ids[r * p.num_top + i] = id_of(key);
      p.top_logprobs[r * p.num_top + i] = logprob(logit_of(key));
    }
  }
}

}  // namespace

void token_logprobs(const TokenLogprobsParams& p, cudaStream_t stream) {
  launch(token_logprobs_kernel, dim3(p.rows), dim3(logit_threads(p.vocab)), kMaxLogitThreads / kWarp * sizeof(uint64_t),
         stream, p);
}

}  // namespace pybatch::cuda

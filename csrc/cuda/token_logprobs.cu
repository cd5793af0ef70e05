// token_logprobs: a block a row; the largest are listed and sorted.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/logits.cuh"

namespace pybatch::cuda {
namespace {

__global__ void __launch_bounds__(kMaxLogitThreads, 1) token_logprobs_kernel(TokenLogprobsParams p) {
  begin_kernel();
  KeyList list(dynamic_shared<void>());
  const int64_t r = blockIdx.x;
  const int token = static_cast<int>(p.tokens[r]);
  const LogitRow row = {p.logits + r * p.row_stride, static_cast<int>(p.vocab)};
  const uint64_t own_largest = own_largest_key(row), first = block_reduce<Largest>(own_largest, list.scratch());
  const float largest = logit_of(first), chosen = row.at(token);
  const uint64_t chosen_key = key_of(chosen, token);
  uint64_t mass = 0, rank = 0;
  row.each([&](float x, int id) {
    if (largest > -INFINITY) mass += softmax_weight(x, largest, 1.0f);
    if (key_of(x, id) >= chosen_key) ++rank;
  });
  mass = block_reduce<Add>(mass, list.scratch());
  rank = block_reduce<Add>(rank, list.scratch());
  const double log_mass =
      largest > -INFINITY ? static_cast<double>(largest) + log(static_cast<double>(mass) * 0x1p-40) : 0.0;
  auto logprob = [&](float logit) { return static_cast<float>(static_cast<double>(logit) - log_mass); };
  if (threadIdx.x == 0) {
    p.logprob[r] = logprob(chosen);
    p.rank[r] = static_cast<int64_t>(rank);
  }
  // As many at a time as the list has room for.
  uint64_t next = first;
  for (int64_t done = 0; done < p.num_top;) {
    const int64_t left = p.num_top - done, count = left < kMaxListed ? left : kMaxListed;
    uint64_t low = done == 0 ? key_of_at_least(count, own_largest, list) : 0;
    Prefix top;
    while (top.listed == 0) {  // twice, where the list has had no room for all that comes to `low`
      top = prefix_that_reaches(row, list, low, next, static_cast<uint64_t>(count), [](float) { return uint64_t{1}; });
      low = top.last;
    }
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
      const uint64_t key = list.at(static_cast<int>(i));
      p.top_ids[r * p.num_top + done + i] = id_of(key);
      p.top_logprobs[r * p.num_top + done + i] = logprob(logit_of(key));
    }
    next = top.last - 1;
    done += count;
  }
}

}  // namespace

void token_logprobs(const TokenLogprobsParams& p, cudaStream_t stream) {
  launch(token_logprobs_kernel, dim3(p.rows), dim3(logit_threads(p.vocab)), KeyList::kSharedBytes, stream, p);
}

}  // namespace pybatch::cuda

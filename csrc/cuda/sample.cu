// sample: a block a row. No sort: the cuts are found by halving the range of logits, the token by halving the row.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/logits.cuh"

namespace pybatch::cuda {
namespace {

// A number in [0, 1) of 53 bits: the first two words of Philox4x32-10 (Salmon et al. 2011), keyed by the seed, at
// counter (position, 0).
__device__ __forceinline__ double uniform(uint64_t seed, uint64_t position) {
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    c[0] = static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0];
    c[1] = static_cast<uint32_t>(b);
    c[2] = static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1];
    c[3] = static_cast<uint32_t>(a);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return static_cast<double>((uint64_t{c[0]} << 32 | c[1]) >> 11) * 0x1p-53;
}

// The last token that top_k and top_p keep.
__device__ __forceinline__ uint64_t last_kept(const LogitRow& row, float largest, float temperature, int64_t top_k,
                                              float top_p, uint64_t* scratch) {
  uint64_t last = 0;
  if (top_k > 0 && top_k < row.vocab) {
    last = key_that_reaches(row, last, top_k, [](float) { return uint64_t{1}; }, scratch);
  }
  if (top_p < 1.0f) {
    auto weight = [&](float x) { return softmax_weight(x, largest, temperature); };
    const uint64_t mass = sum_from(row, last, weight, scratch);
    const auto target = static_cast<uint64_t>(static_cast<double>(top_p) * static_cast<double>(mass));
    last = key_that_reaches(row, last, target > 0 ? target : 1, weight, scratch);
  }
  return last;
}

// The first token, in id order, at which the running sum of weight(id) is above `target`: the range of ids is
// divided among the warps, then the part with the token again, until a part is no larger than a warp.
template <class Weight>
__device__ __forceinline__ int64_t token_above(int64_t vocab, uint64_t target, const Weight& weight, uint64_t* parts) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warps = blockDim.x / kWarp;
  int64_t begin = 0, end = vocab;
  for (;;) {
    const int64_t part = ceil_div(end - begin, warps);
    const int64_t my_begin = begin + warp * part, my_end = my_begin + part < end ? my_begin + part : end;
    unsigned long long sum = 0;
    for (int64_t id = my_begin + lane; id < my_end; id += kWarp) sum += weight(id);
    for (int offset = 1; offset < kWarp; offset *= 2) {  // inclusive over the lanes
      const unsigned long long below = __shfl_up_sync(kAllLanes, sum, offset);
      if (lane >= offset) sum += below;
    }
    __syncthreads();
    if (lane == kWarp - 1) parts[warp] = sum;
    __syncthreads();
    int found = 0;
    uint64_t before = 0;
    while (found + 1 < warps && before + parts[found] <= target) before += parts[found++];
    if (part <= kWarp) {  // a token a lane, so that the lanes' sums are the running sum
      const uint32_t passed = __ballot_sync(kAllLanes, before + sum > target);
      __syncthreads();
      if (warp == found && lane == 0) parts[0] = static_cast<uint64_t>(my_begin + __ffs(static_cast<int>(passed)) - 1);
      __syncthreads();
      return static_cast<int64_t>(parts[0]);
    }
    target -= before;
    begin += found * part;
    end = begin + part < end ? begin + part : end;
  }
}

__global__ void __launch_bounds__(kMaxLogitThreads) sample_kernel(SampleParams p) {
  uint64_t* scratch = dynamic_shared<uint64_t>();
  const int64_t r = blockIdx.x;
  LogitRow row = {p.logits + r * p.row_stride, p.vocab};
  if (p.masks != nullptr && p.mask_rows[r] >= 0) row.mask = p.masks + p.mask_rows[r] * ceil_div(p.vocab, 32);
  const uint64_t first = largest_key(row, ~uint64_t{0}, scratch);
  const float largest = logit_of(first), temperature = p.temperature[r], min_p = p.min_p[r];
  int64_t token = id_of(first);
  if (temperature > 0.0f && largest > -INFINITY) {
    const uint64_t last = last_kept(row, largest, temperature, p.top_k[r], p.top_p[r], scratch);
    const auto least = static_cast<uint64_t>(min_p * 0x1p40f);
    auto weight = [&](int64_t id) {
      const float x = row.at(id);
      const uint64_t w = key_of(x, id) >= last ? softmax_weight(x, largest, temperature) : 0;
      return w >= least ? w : 0;
    };
    uint64_t sum = 0;
    row.each([&](int64_t id) { sum += weight(id); });
    const uint64_t mass = block_reduce<Add>(sum, scratch);
    const double u = uniform(static_cast<uint64_t>(p.seeds[r]), static_cast<uint64_t>(p.positions[r]));
    const auto target = static_cast<uint64_t>(u * static_cast<double>(mass));
    token = token_above(p.vocab, target < mass ? target : mass - 1, weight, scratch);
  }
  if (threadIdx.x == 0) p.out[r] = row.allows(token) && isfinite(row.logits[token]) ? token : -1;
}

}  // namespace

void sample(const SampleParams& p, cudaStream_t stream) {
  launch(sample_kernel, dim3(p.rows), dim3(logit_threads(p.vocab)), kMaxLogitThreads / kWarp * sizeof(uint64_t), stream,
         p);
}

}  // namespace pybatch::cuda

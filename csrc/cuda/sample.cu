// sample: a block a row. No sort: the cuts are found by halving the range of logits. A thread runs whole groups of the
// race in sampling.h.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/logits.cuh"

namespace pybatch::cuda {
namespace {

constexpr int64_t kGroup = 16;                             // tokens, whose ids are as far apart
constexpr uint64_t kNoToken = uint64_t{0x7f800000} << 32;  // with a score of infinity

__device__ __forceinline__ int64_t group_of(int64_t id) { return id / (kGroup * kGroup) * kGroup + id % kGroup; }

// Words 0 and 1 of Philox4x32-10 (Salmon et al. 2011), keyed by the seed.
__device__ __forceinline__ uint2 philox(uint64_t seed, uint64_t position, uint32_t index, uint32_t kind) {
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), index, kind};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    c[0] = static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0];
    c[1] = static_cast<uint32_t>(b);
    c[2] = static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1];
    c[3] = static_cast<uint32_t>(a);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return {c[0], c[1]};
}

__device__ __forceinline__ double exponential(uint32_t word) { return -log1p(-(word + 0.5) * 0x1p-32); }

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

// The race of sampling.h over a row's softmax after the cuts.
struct Race {
  LogitRow row;
  float largest, temperature, min_weight;
  uint64_t last;  // the last token that top_k and top_p keep
  uint64_t seed, position;

  __device__ __forceinline__ float weight(float x, int64_t id) const {
    const float w = key_of(x, id) >= last ? exp_weight(x, largest, temperature) : 0.0f;
    return w >= min_weight ? w : 0.0f;
  }

  // The best of `best` and the tokens of a group, as score and id. No token's score is below what the group's first
  // time makes of the largest weight.
  __device__ __forceinline__ uint64_t run(int64_t group, uint64_t best) const {
    const int64_t begin = group / kGroup * (kGroup * kGroup) + group % kGroup;
    float most = -INFINITY;
    for (int64_t id = begin; id < row.vocab && id < begin + kGroup * kGroup; id += kGroup) {
      most = fmaxf(most, row.at(id));
    }
    if (key_of(most, 0) < last) return best;
    const uint2 words = philox(seed, position, static_cast<uint32_t>(group), 0);
    const double first = exponential(words.x) / kGroup;
    if (score(first, exp_weight(most, largest, temperature)) > score_of(best)) return best;
    for (int64_t i = 0; i < kGroup; ++i) {
      const int64_t id = begin + i * kGroup;
      const float w = id < row.vocab ? weight(row.at(id), id) : 0.0f;
      if (w == 0.0f || score(first, w) > score_of(best)) continue;
      const double rest =
          i == words.y >> 28 ? 0.0 : exponential(philox(seed, position, static_cast<uint32_t>(id), 1).x);
      const uint64_t key = static_cast<uint64_t>(__float_as_uint(score(first + rest, w))) << 32 | id;
      best = key < best ? key : best;
    }
    return best;
  }

  static __device__ __forceinline__ float score(double time, float w) { return static_cast<float>(time / w); }
  static __device__ __forceinline__ float score_of(uint64_t key) {
    return __uint_as_float(static_cast<uint32_t>(key >> 32));
  }
};

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
    const Race race = {row,
                       largest,
                       temperature,
                       min_p,
                       last,
                       static_cast<uint64_t>(p.seeds[r]),
                       static_cast<uint64_t>(p.positions[r])};
    const int64_t groups = ceil_div(p.vocab, kGroup * kGroup) * kGroup;
    uint64_t best = race.run(group_of(id_of(first)), kNoToken);
    for (int64_t group = threadIdx.x; group < groups; group += blockDim.x) best = race.run(group, best);
    token = static_cast<int64_t>(block_reduce<Smallest>(best, scratch) & 0xffffffffu);
  }
  if (threadIdx.x == 0) p.out[r] = row.allows(token) && isfinite(row.logits[token]) ? token : -1;
}

}  // namespace

void sample(const SampleParams& p, cudaStream_t stream) {
  launch(sample_kernel, dim3(p.rows), dim3(logit_threads(p.vocab)), kMaxLogitThreads / kWarp * sizeof(uint64_t), stream,
         p);
}

}  // namespace pybatch::cuda

// sample: a block a row. What top_k and top_p may keep is listed and sorted; the race of sampling.h is then run over
// the list, or where nothing is cut, over the row by whole groups.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/logits.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kGroup = 16;                                 // tokens, whose ids are as far apart
constexpr uint64_t kNoToken = uint64_t{0x7f800000} << 32;  // with a score of infinity

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

// What top_k and top_p keep; {} is all. own_largest: key of the thread's tokens.
__device__ __forceinline__ Prefix kept_tokens(const LogitRow& row, uint64_t first, uint64_t own_largest,
                                              float temperature, int64_t top_k, float top_p, KeyList& list) {
  Prefix kept;
  if (top_k > 0 && top_k < row.vocab) {
    const uint64_t low = key_of_at_least(top_k, own_largest, list);
    kept = prefix_that_reaches(row, list, low, first, static_cast<uint64_t>(top_k), [](float) { return uint64_t{1}; });
  }
  if (top_p >= 1.0f) return kept;

  const float largest = logit_of(first);
  auto weight = [&](float x) { return softmax_weight(x, largest, temperature); };
  uint64_t mass = 0;
  if (kept.listed > 0) {
    for (int i = static_cast<int>(threadIdx.x); i < kept.listed; i += static_cast<int>(blockDim.x)) {
      mass += weight(logit_of(list.at(i)));
    }
  } else {
    row.each([&](float x, int id) {
      if (key_of(x, id) >= kept.last) mass += weight(x);
    });
  }
  mass = block_reduce<Add>(mass, list.scratch());
  auto target = static_cast<uint64_t>(static_cast<double>(top_p) * static_cast<double>(mass));
  target = target > 0 ? target : 1;
  if (kept.listed > 0) {
    const int place = list.place_that_reaches(kept.listed, target, weight);
    return {list.at(place), place + 1};
  }
  // Tokens below (1 - top_p) / vocab of the mass hold less than 1 - top_p together, so top_p keeps none of them. The
  // half is a margin for rounding.
  const double least = 0.5 * (1.0 - static_cast<double>(top_p)) * (static_cast<double>(mass) * 0x1p-40) / row.vocab;
  const auto limit = static_cast<float>(static_cast<double>(largest) + static_cast<double>(temperature) * log(least));
  const uint64_t low = key_of(limit, row.vocab);
  return prefix_that_reaches(row, list, low > kept.last ? low : kept.last, first, target, weight);
}

// The race of sampling.h over a row's softmax after the cuts.
struct Race {
  LogitRow row;
  float largest, temperature, min_weight;
  uint64_t last;  // the last token that top_k and top_p keep
  uint64_t seed, position;

  // The best of `best` and all that is kept, each as score and id.
  __device__ __forceinline__ uint64_t run(uint64_t best) const {
    const int quads = static_cast<int>(ceil_div(row.vocab, kGroup * kGroup)) * (kGroup / 4);
    const bool aligned = row.first_aligned() == 0;
    for (int quad = static_cast<int>(threadIdx.x); quad < quads; quad += static_cast<int>(blockDim.x)) {
      const int begin = quad / 4 * (kGroup * kGroup) + quad % 4 * 4;
      float most[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
#pragma unroll 4
      for (int id = begin; id < begin + kGroup * kGroup && id < row.vocab; id += kGroup) {
        float x[4];
        if (aligned && id + 4 <= row.vocab) {
          row.load(id, x);
        } else {
          for (int j = 0; j < 4; ++j) x[j] = id + j < row.vocab ? row.at(id + j) : -INFINITY;
        }
        for (int j = 0; j < 4; ++j) most[j] = fmaxf(most[j], x[j]);
      }
#pragma unroll 1
      for (int j = 0; j < 4; ++j) {
        best = run_group(begin + j, most[0], best);
        most[0] = most[1], most[1] = most[2], most[2] = most[3];  // an index would put them in local memory
      }
    }
    return best;
  }

  // The same for the first tokens of a list that begins with what is kept.
  __device__ __forceinline__ uint64_t run(const KeyList& list, int count, uint64_t best) const {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      best = run_token(list.at(i), best);
    }
    return best;
  }

  __device__ __forceinline__ uint64_t run_token(uint64_t key, uint64_t best) const {
    const uint2 words = words_of(group_of(id_of(key)));
    return run_token(key, exponential(words.x) / kGroup, words.y >> 28, best);
  }

 private:
  static __device__ __forceinline__ int group_of(int id) { return id / (kGroup * kGroup) * kGroup + id % kGroup; }
  __device__ __forceinline__ uint2 words_of(int group) const {
    return philox(seed, position, static_cast<uint32_t>(group), 0);
  }

  // The tokens of the group whose first is `begin` and whose largest logit is `most`. None has a score below what the
  // group's first time makes of the largest weight; and that time, -log(1 - u), is not below u.
  __device__ __forceinline__ uint64_t run_group(int begin, float most, uint64_t best) const {
    if (key_of(most, 0) < last) return best;
    const uint2 words = words_of(group_of(begin));
    const float weight = exp_weight(most, largest, temperature);
    if (0.999f * 0x1p-36f * static_cast<float>(words.x) > weight * score_of(best)) return best;
    const double first = exponential(words.x) / kGroup;
    if (score(first, weight) > score_of(best)) return best;
    for (int i = 0; i < kGroup; ++i) {
      const int id = begin + i * kGroup;
      if (id < row.vocab) best = run_token(key_of(row.at(id), id), first, words.y >> 28, best);
    }
    return best;
  }

  // first: the least time of the token's group, which is that of its member `whose`.
  __device__ __forceinline__ uint64_t run_token(uint64_t token, double first, uint32_t whose, uint64_t best) const {
    if (token < last) return best;
    const float w = exp_weight(logit_of(token), largest, temperature);
    if (w == 0.0f || w < min_weight || score(first, w) > score_of(best)) return best;
    const int id = id_of(token);
    const double rest = static_cast<uint32_t>(id / kGroup % kGroup) == whose
                            ? 0.0
                            : exponential(philox(seed, position, static_cast<uint32_t>(id), 1).x);
    const uint64_t key =
        static_cast<uint64_t>(__float_as_uint(score(first + rest, w))) << 32 | static_cast<uint32_t>(id);
    return key < best ? key : best;
  }

  static __device__ __forceinline__ float score(double time, float w) { return static_cast<float>(time / w); }
  static __device__ __forceinline__ float score_of(uint64_t key) {
    return __uint_as_float(static_cast<uint32_t>(key >> 32));
  }
};

__global__ void __launch_bounds__(kMaxLogitThreads) sample_kernel(SampleParams p) {
  begin_kernel();
  KeyList list(dynamic_shared<void>());
  const int64_t r = blockIdx.x;
  LogitRow row = {p.logits + r * p.row_stride, static_cast<int>(p.vocab)};
  if (p.masks != nullptr && p.mask_rows[r] >= 0) row.mask = p.masks + p.mask_rows[r] * ceil_div(p.vocab, 32);
  const uint64_t own_largest = own_largest_key(row), first = block_reduce<Largest>(own_largest, list.scratch());
  const float largest = logit_of(first), temperature = p.temperature[r];
  int token = id_of(first);
  if (temperature > 0.0f && largest > -INFINITY) {
    const Prefix kept = kept_tokens(row, first, own_largest, temperature, p.top_k[r], p.top_p[r], list);
    const auto seed = static_cast<uint64_t>(p.seeds[r]), position = static_cast<uint64_t>(p.positions[r]);
    const Race race = {row, largest, temperature, p.min_p[r], kept.last, seed, position};
    uint64_t best = race.run_token(first, kNoToken);
    best = kept.listed > 0 ? race.run(list, kept.listed, best) : race.run(best);
    token = static_cast<int>(block_reduce<Smallest>(best, list.scratch()) & 0xffffffffu);
  }
  if (threadIdx.x == 0) p.out[r] = row.allows(token) && isfinite(row.logits[token]) ? token : -1;
}

}  // namespace

void sample(const SampleParams& p, cudaStream_t stream) {
  launch(sample_kernel, dim3(p.rows), dim3(logit_threads(p.vocab)), KeyList::kSharedBytes, stream, p);
}

}  // namespace pybatch::cuda

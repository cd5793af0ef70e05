// One block's passes over a row of logits: sums that do not depend on order, and the place in the order of tokens at
// which a sum is reached. Tokens are in order of their logits, the larger first, then of their ids, the lower first.
// NaN counts as -inf, +inf as the largest float, and a token that a row's mask forbids as one of logit -inf.
#pragma once

#include <cfloat>

#include "cuda/common.cuh"

namespace pybatch::cuda {

constexpr int kMaxLogitThreads = 512;

// Threads of a block that takes a row, in whole warps, at least two. No result depends on it.
inline int logit_threads(int64_t vocab) {
  constexpr int64_t kTokensAThread = 32;
  const int64_t warps = ceil_div(vocab, kTokensAThread * kWarp);
  return static_cast<int>(warps < 2 ? 2 : warps < kMaxLogitThreads / kWarp ? warps : kMaxLogitThreads / kWarp) * kWarp;
}

struct LogitRow {
  const float* logits;
  int64_t vocab;
  const uint32_t* mask = nullptr;  // bit i % 32 of word i / 32: token i is allowed; null: all are

  __device__ __forceinline__ bool allows(int64_t id) const {
    return mask == nullptr || (mask[id / 32] >> (id % 32) & 1) != 0;
  }
  __device__ __forceinline__ float at(int64_t id) const {
    return allows(id) ? fminf(fmaxf(logits[id], -INFINITY), FLT_MAX) : -INFINITY;
  }

  // Calls f(id) on the ids that this thread takes.
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
    for (int64_t id = threadIdx.x; id < vocab; id += blockDim.x) f(id);
  }
};

// A token as one integer that is larger the earlier the token comes.
__device__ __forceinline__ uint64_t key_of(float logit, int64_t id) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 to +0
  const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
__device__ __forceinline__ float logit_of(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}
__device__ __forceinline__ int64_t id_of(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

// A token's unscaled probability, exp((x - largest) / temperature).
__device__ __forceinline__ float exp_weight(float x, float largest, float temperature) {
  return expf(fmaxf((x - largest) / temperature, -INFINITY));  // -inf / inf is NaN
}

// The same in units of 2^-40: integers add up to the same sum in any order.
__device__ __forceinline__ uint64_t softmax_weight(float x, float largest, float temperature) {
  return static_cast<uint64_t>(exp_weight(x, largest, temperature) * 0x1p40f);
}

// The largest key below `limit`; 0 if there is none.
__device__ __forceinline__ uint64_t largest_key(const LogitRow& row, uint64_t limit, uint64_t* scratch) {
  uint64_t largest = 0;
  row.each([&](int64_t id) {
    const uint64_t key = key_of(row.at(id), id);
    if (key < limit && key > largest) largest = key;
  });
  return block_reduce<Largest>(largest, scratch);
}

// The sum of weight(logit) over the tokens whose key is at least `least`.
template <class Weight>
__device__ __forceinline__ uint64_t sum_from(const LogitRow& row, uint64_t least, const Weight& weight,
                                             uint64_t* scratch) {
  uint64_t sum = 0;
  row.each([&](int64_t id) {
    const float x = row.at(id);
    if (key_of(x, id) >= least) sum += weight(x);
  });
  return block_reduce<Add>(sum, scratch);
}

// The largest key such that the tokens from it on have weights of `target` or more together; `least` if they never do.
// Each round halves the range of keys between the one that is sure to be too small and the one that is not.
template <class Weight>
__device__ __forceinline__ uint64_t key_that_reaches(const LogitRow& row, uint64_t least, uint64_t target,
                                                     const Weight& weight, uint64_t* scratch) {
  uint64_t low = least, high = largest_key(row, ~uint64_t{0}, scratch), above = 0;  // above: weight beyond high
  while (low < high) {
    const uint64_t pivot = low + (high - low + 1) / 2;
    uint64_t sum = 0, below_pivot = low, from_pivot = high;
    row.each([&](int64_t id) {
      const float x = row.at(id);
      const uint64_t key = key_of(x, id);
      if (key < low || key > high) return;
      if (key < pivot) {
        below_pivot = key > below_pivot ? key : below_pivot;
      } else {
        from_pivot = key < from_pivot ? key : from_pivot;
        sum += weight(x);
      }
    });
    sum = block_reduce<Add>(sum, scratch);
    if (above + sum >= target) {
      low = block_reduce<Smallest>(from_pivot, scratch);
    } else {
      above += sum;
      high = block_reduce<Largest>(below_pivot, scratch);
    }
  }
  return low;
}

}  // namespace pybatch::cuda

// One block's passes over a row of logits: sums that do not depend on order, and the place in the order of tokens at
// which a sum is reached. Tokens are in order of their logits, the larger first, then of their ids, the lower first.
// NaN counts as -inf, +inf as the largest float, and a token that a row's mask forbids as one of logit -inf.
//
// A pass over a large vocabulary costs more than all that can be done with a few thousand tokens, so the tokens that
// may be wanted are listed in shared memory and sorted there.
#pragma once

#include <cfloat>

#include "cuda/common.cuh"

namespace pybatch::cuda {

constexpr int kMaxLogitThreads = 512;
constexpr int kMaxListed = 4096;  // a power of two

// Threads of a block that takes a row, in whole warps, at least two. No result depends on it.
inline int logit_threads(int64_t vocab) {
  constexpr int64_t kTokensAThread = 32;
  const int64_t warps = ceil_div(vocab, kTokensAThread * kWarp);
  return static_cast<int>(warps < 2 ? 2 : warps < kMaxLogitThreads / kWarp ? warps : kMaxLogitThreads / kWarp) * kWarp;
}

struct LogitRow {
  const float* logits;
  int vocab;
  const uint32_t* mask = nullptr;  // bit i % 32 of word i / 32: token i is allowed; null: all are

  __device__ __forceinline__ bool allows(int id) const {
    return mask == nullptr || (mask[id / 32] >> (id % 32) & 1) != 0;
  }
  __device__ __forceinline__ float at(int id) const { return allows(id) ? cleaned(logits[id]) : -INFINITY; }

  // x = the logits of tokens id .. id + 3, which lie in 16 aligned bytes.
  __device__ __forceinline__ void load(int id, float (&x)[4]) const {
    const uint4 raw = load_global_16(logits + id);
    x[0] = cleaned(__uint_as_float(raw.x)), x[1] = cleaned(__uint_as_float(raw.y));
    x[2] = cleaned(__uint_as_float(raw.z)), x[3] = cleaned(__uint_as_float(raw.w));
    if (mask == nullptr) return;
    for (int i = 0; i < 4; ++i) x[i] = allows(id + i) ? x[i] : -INFINITY;
  }
  static __device__ __forceinline__ float cleaned(float x) { return fminf(fmaxf(x, -INFINITY), FLT_MAX); }

  // The first token at a multiple of 16 bytes.
  __device__ __forceinline__ int first_aligned() const {
    const int beyond = static_cast<int>(reinterpret_cast<uintptr_t>(logits) / sizeof(float) % 4);
    const int first = (4 - beyond) % 4;
    return first < vocab ? first : vocab;
  }

  // Calls f(logit, id) on the tokens that this thread takes.
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
    constexpr int kLoads = 4;  // under way at a time
    const int head = first_aligned(), end = head + (vocab - head) / 4 * 4;
    const int thread = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x) * 4;
    for (int first = head + 4 * thread; first < end; first += kLoads * step) {
      float x[kLoads][4];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (first + i * step < end) load(first + i * step, x[i]);
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (first + i * step >= end) break;
#pragma unroll
        for (int j = 0; j < 4; ++j) f(x[i][j], first + i * step + j);
      }
    }
    for (int i = thread; i < head + vocab - end; i += static_cast<int>(blockDim.x)) {
      const int id = i < head ? i : end + i - head;
      f(at(id), id);
    }
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
__device__ __forceinline__ int id_of(uint64_t key) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
}

// A token's unscaled probability, exp((x - largest) / temperature).
__device__ __forceinline__ float exp_weight(float x, float largest, float temperature) {
  return expf(fmaxf((x - largest) / temperature, -INFINITY));  // -inf / inf is NaN
}

// The same in units of 2^-40: integers add up to the same sum in any order.
__device__ __forceinline__ uint64_t softmax_weight(float x, float largest, float temperature) {
  return static_cast<uint64_t>(exp_weight(x, largest, temperature) * 0x1p40f);
}

// The largest key of those that this thread takes; 0 if it takes none.
__device__ __forceinline__ uint64_t own_largest_key(const LogitRow& row) {
  int best = row.vocab;
  float most = -INFINITY;
  row.each([&](float x, int id) {
    if (x > most || (x == most && id < best)) most = x, best = id;
  });
  return best < row.vocab ? key_of(most, best) : 0;
}

// Keys in shared memory. All threads of the block call its functions together, but for add() and at().
class KeyList {
 public:
  static constexpr size_t kSharedBytes =
      (kMaxListed + kMaxLogitThreads / kWarp) * sizeof(uint64_t) + 2 * sizeof(uint32_t);

  __device__ __forceinline__ explicit KeyList(void* shared)
      : scratch_(static_cast<uint64_t*>(shared)),
        keys_(scratch_ + kMaxLogitThreads / kWarp),
        words_(reinterpret_cast<uint32_t*>(keys_ + kMaxListed)) {}

  __device__ __forceinline__ uint64_t* scratch() const { return scratch_; }  // for block_reduce
  __device__ __forceinline__ uint64_t at(int place) const { return keys_[place]; }

  __device__ __forceinline__ void clear() {
    __syncthreads();
    if (threadIdx.x == 0) words_[0] = 0;
    __syncthreads();
  }
  __device__ __forceinline__ void add(uint64_t key) {
    const uint32_t place = atomicAdd(words_, 1u);
    if (place < kMaxListed) keys_[place] = key;
  }
  // How many were added; more than kMaxListed are not all there.
  __device__ __forceinline__ int added() const {
    __syncthreads();
    return static_cast<int>(words_[0]);
  }

  // The largest first, with zeros up to a power of two (Batcher's bitonic sorter).
  __device__ __forceinline__ void sort(int count) {
    const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    int size = 1;
    while (size < count) size *= 2;
    for (int i = count + thread; i < size; i += threads) keys_[i] = 0;
    for (int run = 2; run <= size; run *= 2) {
      for (int gap = run / 2; gap > 0; gap /= 2) {
        __syncthreads();
        for (int i = thread; i < size / 2; i += threads) {
          const int a = 2 * i - (i & (gap - 1)), b = a + gap;
          const uint64_t x = keys_[a], y = keys_[b];
          if ((x < y) == ((a & run) == 0)) keys_[a] = y, keys_[b] = x;
        }
      }
    }
    __syncthreads();
  }

  // Of the first `count` keys, the place of the first up to which weights come to `target` or more; the last if none.
  template <class Weight>
  __device__ __forceinline__ int place_that_reaches(int count, uint64_t target, const Weight& weight) {
    const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    const int each = (count + threads - 1) / threads, begin = thread * each;
    const int end = begin + each < count ? begin + each : count;
    uint64_t sum = 0;
    for (int i = begin; i < end; ++i) sum += weight(logit_of(keys_[i]));
    uint64_t before = block_sum_before(sum);
    if (thread == 0) words_[1] = static_cast<uint32_t>(count - 1);
    __syncthreads();
    if (before < target && before + sum >= target) {
      int place = begin;
      while ((before += weight(logit_of(keys_[place]))) < target) ++place;
      words_[1] = static_cast<uint32_t>(place);
    }
    __syncthreads();
    return static_cast<int>(words_[1]);
  }

 private:
  // The sum of x over the threads before this one.
  __device__ __forceinline__ uint64_t block_sum_before(uint64_t x) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    uint64_t sum = x;
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const uint64_t below = __shfl_up_sync(kAllLanes, sum, offset);
      if (lane >= offset) sum += below;
    }
    __syncthreads();
    if (lane == kWarp - 1) scratch_[warp] = sum;
    __syncthreads();
    sum -= x;
    for (int i = 0; i < warp; ++i) sum += scratch_[i];
    return sum;
  }

  uint64_t *scratch_, *keys_;
  uint32_t* words_;  // how many keys were added; a place
};

// Keys from `low` to `high`, both counted in, that sums have not told from each other yet.
struct Span {
  uint64_t low, high;
  uint64_t above = 0;  // the weights of the tokens beyond high
};

// Half of the span, or less, in which the weights of the tokens beyond it and in it still reach `target`. How many
// tokens are left is in `count`.
template <class Weight>
__device__ __forceinline__ Span half_of(const LogitRow& row, const Span& span, uint64_t target, const Weight& weight,
                                        int& count, uint64_t* scratch) {
  const uint64_t pivot = span.low + (span.high - span.low + 1) / 2;
  uint64_t sum = 0, counts = 0, below_pivot = span.low, from_pivot = span.high;
  row.each([&](float x, int id) {
    const uint64_t key = key_of(x, id);
    if (key < span.low || key > span.high) return;
    if (key < pivot) {
      below_pivot = key > below_pivot ? key : below_pivot;
      counts += uint64_t{1} << 32;
    } else {
      from_pivot = key < from_pivot ? key : from_pivot;
      counts += 1;
      sum += weight(x);
    }
  });
  sum = block_reduce<Add>(sum, scratch);
  counts = block_reduce<Add>(counts, scratch);
  if (span.above + sum >= target) {
    count = static_cast<int>(counts & 0xffffffffu);
    return {block_reduce<Smallest>(from_pivot, scratch), span.high, span.above};
  }
  count = static_cast<int>(counts >> 32);
  return {span.low, block_reduce<Largest>(below_pivot, scratch), span.above + sum};
}

// A prefix of the tokens' order.
struct Prefix {
  uint64_t last = 0;  // its last token's key
  int listed = 0;     // how many tokens it has, where they are those that the list begins with; else 0
};

// Of the tokens with keys from `low` to `high`, the shortest prefix with weights of `target` or more together, which
// all of them have to reach. One pass, where they are no more than kMaxListed.
template <class Weight>
__device__ __forceinline__ Prefix prefix_that_reaches(const LogitRow& row, KeyList& list, uint64_t low, uint64_t high,
                                                      uint64_t target, const Weight& weight) {
  Span span = {low, high};
  int count = 0;
  while (true) {
    list.clear();
    row.each([&](float x, int id) {
      const uint64_t key = key_of(x, id);
      if (key >= span.low && key <= span.high) list.add(key);
    });
    count = list.added();
    if (count <= kMaxListed) break;
    while (count > kMaxListed) span = half_of(row, span, target, weight, count, list.scratch());
  }
  list.sort(count);
  const int place = list.place_that_reaches(count, target - span.above, weight);
  return {list.at(place), span.above == 0 ? place + 1 : 0};
}

// A key that at least k tokens come to, from the largest key of each thread's tokens; 0 for a large k.
__device__ __forceinline__ uint64_t key_of_at_least(int64_t k, uint64_t own_largest, KeyList& list) {
  if (k > blockDim.x) return 0;
  list.clear();
  list.add(own_largest);
  list.sort(list.added());
  return list.at(static_cast<int>(k) - 1);
}

}  // namespace pybatch::cuda

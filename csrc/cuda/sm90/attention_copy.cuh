// The copying warpgroup of prefill attention: Q of an item, then its tiles one by one. A tile is told of when it has
// landed and wgmma can see it: once the next has been started, so that copies are always under way.
#pragma once

#include "cuda/attention_kernel.cuh"
#include "cuda/sm90/attention_config.cuh"

namespace pybatch::cuda {
namespace {

template <class T, class Config>
struct PrefillShared {
  unsigned char* bytes = dynamic_shared<unsigned char>();
  uint64_t* filled = reinterpret_cast<uint64_t*>(bytes + Config::kBarriers);            // [kStages]
  uint64_t *emptied = filled + Config::kStages, *q_filled = emptied + Config::kStages;  // of Q and the item:
  uint64_t* q_emptied = q_filled + 1;
  T* q = reinterpret_cast<T*>(bytes + Config::kQ);
  Item* item = reinterpret_cast<Item*>(bytes + Config::kItem);            // its sequence is -1 behind the last
  uint32_t* found = reinterpret_cast<uint32_t*>(bytes + Config::kFound);  // [kGroups][2][4], see has_not_finite
  int32_t* next = reinterpret_cast<int32_t*>(bytes + Config::kNext);      // [2], see told
  static_assert(sizeof(Item) <= Config::kFound - Config::kItem);

  __device__ __forceinline__ unsigned char* keys(uint32_t stage) const {
    return bytes + 2 * stage * Config::kPartBytes;
  }
  __device__ __forceinline__ unsigned char* values(uint32_t stage) const { return keys(stage) + Config::kPartBytes; }

  // By one thread, before all others go on.
  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i <= Config::kStages; ++i) {
      mbarrier_init(i < Config::kStages ? filled + i : q_filled, kWarpgroup / kWarp);
      mbarrier_init(i < Config::kStages ? emptied + i : q_emptied, Config::kWarps);
    }
    fence_proxy_async();
  }
};

template <class T, class Config>
class PrefillCopy {
 public:
  __device__ __forceinline__ PrefillCopy(const PagedAttentionParams& p, const PrefillShared<T, Config>& shared)
      : p_(p), shared_(shared), shift_(log2_at_run_time(static_cast<int>(p.cache.block_size))) {
    // A copy of a warp: of K two runs of tokens of sixteen dims, of V as many tokens as there are in 32 runs. Eight
    // lanes that follow each other write to different banks.
    const int half = lane() % 2, dim = lane() / 2 % 4 * 2 + lane() / 8 % 2 + lane() / 16 * 8;
    from_k_ = (dim << shift_) + half * kRun;
    to_k_ = dim * Config::kRowBytes + ((2 * page() + half) ^ dim % 8) * 16;
    const int token = lane() / kRuns, run = lane() % kRuns;
    to_v_ = run / 8 * Config::kHalfBytes + (page() * kPage + token) * Config::kRowBytes + (run % 8 ^ token) * 16;
  }

  // The count-th item of the block.
  __device__ __forceinline__ void copy(const Item& item, uint32_t count) {
    publish(item, count);
    copy_q(item);
    cp_async_commit();
    const int begin = item.begin, end = item.end, first = begin / kTile * kTile;
    const int32_t* table = p_.block_tables + item.sequence * p_.block_table_stride;
    const int head = (item.kv_head * kHeadDim) << shift_;
    keys_ = static_cast<const T*>(p_.cache.k) + head + from_k_;
    values_ = static_cast<const T*>(p_.cache.v) + head + lane() * kRun;
    int blocks = 0, next_blocks = block_at(table, first / kLookup * kLookup, begin, end);
    uint64_t* begun = shared_.q_filled;
    for (int token = first; token < end; token += kTile) {
      if (token % kLookup == 0 || token == first) {
        blocks = next_blocks;
        next_blocks = block_at(table, token / kLookup * kLookup + kLookup, begin, end);
      }
      const auto block = static_cast<uint32_t>(__shfl_sync(kAllLanes, blocks, token / kTile % kWarp));
      if (turn_.round > 0) wait_for(shared_.emptied + turn_.stage, turn_.round - 1);
      const int mine = token + page() * kPage;
      if (mine < end && mine + kPage > begin) {
        copy_page(block, mine & ((1 << shift_) - 1), [](void* to, const T* from) { cp_async_16(to, from); });
      } else {
        copy_page(0, 0, [](void* to, const T*) { *static_cast<uint4*>(to) = uint4{}; });
      }
      cp_async_commit();
      cp_async_wait<1>();
      tell(begun);
      begun = shared_.filled + turn_.stage;
      turn_.advance();
    }
    cp_async_wait<0>();
    tell(begun);
  }

  // What the first thread knows.
  __device__ __forceinline__ int told(int next, uint32_t count) const {
    int32_t* word = shared_.next + count % 2;  // one is read while the other is written
    if (thread() == 0) *word = next;
    named_barrier_sync(1 + Config::kGroups, kWarpgroup);
    return *word;
  }

  // There are no more.
  __device__ __forceinline__ void end(uint32_t count) {
    Item none = {};
    none.sequence = -1;
    publish(none, count);
    arrive_as_warp(shared_.q_filled);
  }

 private:
  static constexpr int kTile = Config::kTile, kHeadDim = Config::kHeadDim, kRuns = kHeadDim / kRun;
  static constexpr int kPage = kTile / (kWarpgroup / kWarp);  // tokens of a tile that a warp copies
  static constexpr int kLookup = kTile * kWarp;               // tokens whose blocks a warp looks up, a tile a lane
  static_assert(kPage == 16);

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ __forceinline__ int lane() { return thread() % kWarp; }
  static __device__ __forceinline__ int page() { return thread() / kWarp; }

  __device__ __forceinline__ void publish(const Item& item, uint32_t count) const {
    if (count > 0) wait_for(shared_.q_emptied, count - 1);
    if (thread() == 0) *shared_.item = item;
  }

  // Zeros where there are no rows.
  __device__ __forceinline__ void copy_q(const Item& item) const {
    constexpr int kStep = kWarpgroup / kRuns;  // rows
    const int group = item.group, d = thread() % kRuns * kRun;
    int row = thread() / kRuns, token = (item.row + row) / group, head = (item.row + row) % group;
    const T* q = static_cast<const T*>(p_.q.data) + p_.query_start[item.sequence] * p_.q.row_stride +
                 item.kv_head * group * kHeadDim + d;
    const int tokens_on = kStep / group, heads_on = kStep % group;
#pragma unroll 1
    for (; row < Config::kRows; row += kStep) {
      T* to = shared_.q + row * Config::kQPitch + d;
      if (item.row + row < item.end_row) {
        cp_async_16(to, q + token * p_.q.row_stride + head * kHeadDim);
      } else {
        *reinterpret_cast<uint4*>(to) = uint4{};
      }
      head += heads_on;
      token += tokens_on + (head >= group);
      head -= head >= group ? group : 0;
    }
  }

  // The blocks of the warp's pages of kLookup tokens.
  __device__ __forceinline__ int block_at(const int32_t* table, int token, int begin, int end) const {
    token += lane() * kTile + page() * kPage;
    return token < end && token + kPage > begin ? table[token >> shift_] : 0;
  }

  // Calls copy(to, from) for the warp's page of a tile, which begins `in_block` tokens into a block.
  template <class Copy>
  __device__ __forceinline__ void copy_page(uint64_t block, int in_block, Copy copy) const {
    unsigned char *to_k = shared_.keys(turn_.stage) + to_k_, *to_v = shared_.values(turn_.stage) + to_v_;
    const T* k = keys_ + block * static_cast<uint32_t>(p_.cache.k_block_stride) + in_block;
    const T* v = values_ + block * static_cast<uint32_t>(p_.cache.v_block_stride) + in_block * kHeadDim;
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) copy(to_k + i * 16 * Config::kRowBytes, k + (i * 16 << shift_));
#pragma unroll
    for (int i = 0; i < kPage * kRuns / kWarp; ++i) {
      const int token = i * kWarp / kRuns;
      auto* to = reinterpret_cast<unsigned char*>(reinterpret_cast<uintptr_t>(to_v) ^ token % 8 * 16);
      copy(to + token * Config::kRowBytes, v + i * kWarp * kRun);
    }
  }

  // That what the thread has waited for is there.
  static __device__ __forceinline__ void tell(uint64_t* filled) {
    fence_proxy_async();
    arrive_as_warp(filled);
  }

  const PagedAttentionParams& p_;
  const PrefillShared<T, Config>& shared_;
  int shift_;                 // log2 of the block size
  int from_k_, to_k_, to_v_;  // of the lane's first run of its warp's page
  const T *keys_, *values_;   // the lane's of the item's KV head, in block 0
  Turn<Config::kStages> turn_;
};

}  // namespace
}  // namespace pybatch::cuda

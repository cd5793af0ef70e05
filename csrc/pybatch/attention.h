// paged_attention: attention of a ragged batch over a paged KV cache: prefill, chunked prefill and decode in one call.
// The queries of sequence s are rows query_start[s] .. query_start[s+1], the last tokens of its seq_lens[s].
//
// Partial softmaxes merge as in FlashAttention-2 (Dao 2023). Splits are at fixed absolute positions (every
// kAttentionSplit tokens) and merge in ascending order, so that results do not depend on how the work is distributed.
#pragma once

#include "pybatch/kv_cache.h"
#include "pybatch/types.h"

namespace pybatch {

constexpr int64_t kAttentionSplit = 512;  // a multiple of every block size

struct PagedAttentionParams {
  ConstMatrix q;  // [tokens, heads * head_dim]
  Matrix out;     // [tokens, heads * head_dim], q's dtype
  KvCache cache;
  const int32_t* block_tables;  // [sequences, max_blocks]
  int64_t block_table_stride;
  const int32_t* query_start;  // [sequences + 1]
  const int32_t* seq_lens;     // [sequences]
  const float* sinks;          // [heads], may be null: a logit in the softmax that has no value
  int32_t* counters;           // [1 + sequences * heads], zeros between calls; CUDA's alone
  float scale;
  float soft_cap;  // 0: none; else logit = cap * tanh(logit / cap)
  int64_t window;  // 0: none; else a query sees its last `window` tokens, itself included
  int64_t tokens, sequences, heads;
};

}  // namespace pybatch

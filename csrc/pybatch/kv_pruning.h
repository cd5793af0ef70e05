// Pruning of one layer of a paged KV cache: the keys of kept blocks turned to other positions, kept tokens gathered
// into other blocks, and the attention that tokens have had, by which they are chosen.
#pragma once

#include "pybatch/kv_cache.h"
#include "pybatch/types.h"

namespace pybatch {

// rotate_keys: turns every key of block blocks[i], in place, by the angles of row i of `rotary` (cos in columns [0,
// rotary_dim/2) and sin in the rest; pairs are (j, j + rotary_dim/2)). Types with scales are turned in fp32 and get new
// scales, as rope_kv_write makes them.
// key_offset: as there.
struct RotateKeysParams {
  KvCache cache;
  const int64_t* blocks;    // [count], each once
  const float* rotary;      // [count, rotary_dim]
  const float* key_offset;  // [kv_heads, head_dim], may be null
  int64_t count, rotary_dim;
};

// gather_kv: token i of KV head h in the block table `destination` becomes that of number indices[h][i] in the table
// `source`: key, value and scales, bit for bit. A block may be in both tables at the same place, and only there. If one
// is, indices[h][i] >= i for all i, so that in ascending order no token is read where one has been written.
struct GatherKvParams {
  KvCache cache;
  const int32_t* source;       // [source blocks]
  const int32_t* destination;  // [at least enough blocks for `kept` tokens]
  const int32_t* indices;      // [kv_heads, kept]
  int64_t kept;
};

// attention_mass: sums over queries the probabilities that causal attention gives to each cached token. The batch is as
// in PagedAttentionParams. Of sequence s the queries that count are rows first[s] .. query_start[s+1]; where there are
// any, for each KV head h and token i of its seq_lens[s],
//   mass[rows[s]][h][i] = mass[sources[s]][h][i] + the probabilities of token i, query after query in ascending order
//                         and in each the heads of group h in ascending order,
// where the first term is 0 if sources[s] < 0, and for the tokens of this call. So the sum is the same in whatever
// pieces queries come, and a call that is repeated changes nothing.
struct AttentionMassParams {
  ConstMatrix q;  // [tokens, heads * head_dim]
  KvCache cache;
  const int32_t* block_tables;  // [sequences, max_blocks]
  int64_t block_table_stride;
  const int32_t *query_start, *seq_lens;   // [sequences + 1], [sequences]
  const int32_t *first, *sources, *rows;   // [sequences]
  float* mass;                             // [mass rows, kv_heads, capacity]
  int64_t mass_row_stride, mass_capacity;  // the latter is a multiple of 16
  float scale;
  int64_t tokens, sequences, heads;
};

}  // namespace pybatch

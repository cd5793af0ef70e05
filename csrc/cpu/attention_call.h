// What a call of paged_attention is made of: tiles of queries, and splits of the tokens that they attend to.
#pragma once

#include "cpu/attention_softmax.h"
#include "cpu/vec.h"
#include "pybatch/attention.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileRows = 48;  // query rows that share every key and value loaded

PYBATCH_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
PYBATCH_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
PYBATCH_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Queries that attend to the same tokens together, a block of rows for each of their KV heads: row r of KV head h is
// token first + r / group, head (kv_head + h) * group + r % group.
struct Tile {
  int64_t sequence, kv_head, kv_heads, first, tokens;
  int64_t position;  // of the first token
};

struct AttentionCall {
  explicit AttentionCall(const PagedAttentionParams& p)
      : p(p),
        group(p.heads / p.cache.kv_heads),
        depth(p.cache.head_dim),
        padded_depth(round_up(depth, kLanes)),
        head_stride(depth * p.cache.block_size),
        groups(p.cache.groups()),
        scale_stride(groups * p.cache.block_size),
        block_shift(__builtin_ctzll(static_cast<unsigned long long>(p.cache.block_size))),
        tile_tokens(larger(kTileRows / group, 1)),
        max_rows(round_up(tile_tokens * group, kLanes)) {}

  int64_t head_rows(const Tile& tile) const { return tile.tokens * group; }
  int64_t rows(const Tile& tile) const { return tile.kv_heads * head_rows(tile); }
  // The tokens of a split that a row of one KV head sees.
  Range range_of(const Tile& tile, int64_t row, int64_t split) const {
    const int64_t position = tile.position + row / group - split * kAttentionSplit;
    const int64_t begin = p.window > 0 ? smaller(larger(position + 1 - p.window, 0), kAttentionSplit) : 0;
    return {begin, larger(smaller(position + 1, kAttentionSplit), begin)};
  }

  const PagedAttentionParams& p;
  const int64_t group, depth, padded_depth;
  const int64_t head_stride;           // of a block, in elements
  const int64_t groups, scale_stride;  // scales of a head and token, and of a head in a block
  const int64_t block_shift, tile_tokens, max_rows;
};

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

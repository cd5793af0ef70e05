// How the work of a call is cut into items, which threads take one after another.
#pragma once

#include "cpu/attention_call.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// The work for one sequence: an item is a tile, or (spread) one split of a tile.
struct SequencePlan {
  int64_t first_item, tiles, tile_heads, head_tiles, first_split, splits;
  bool spread;
  int64_t first_partial;
};

// The index-th tile of a sequence.
inline Tile tile_of(const AttentionCall& call, const SequencePlan& plan, int64_t sequence, int64_t index) {
  const PagedAttentionParams& p = call.p;
  const int64_t begin = p.query_start[sequence], queries = p.query_start[sequence + 1] - begin;
  const int64_t token = (plan.tiles - 1 - index % plan.tiles) * call.tile_tokens;  // the longest first
  const int64_t kv_head = index / plan.tiles * plan.tile_heads;
  return {sequence,
          kv_head,
          smaller(plan.tile_heads, p.cache.kv_heads - kv_head),
          begin + token,
          smaller(queries - token, call.tile_tokens),
          p.seq_lens[sequence] - queries + token};
}

// Plans for every sequence, and behind them one that ends the last: its first_item and first_partial are how many there
// are.
inline void make_plans(const AttentionCall& call, int64_t threads, SequencePlan* plans) {
  const PagedAttentionParams& p = call.p;
  int64_t heads = 0, total = 0;  // units of (head, tile, split): in items of the largest size, and in all
  for (int64_t s = 0; s < p.sequences; ++s) {
    const int64_t queries = p.query_start[s + 1] - p.query_start[s], position = p.seq_lens[s] - queries;
    SequencePlan& plan = plans[s];
    plan.tiles = (queries + call.tile_tokens - 1) / call.tile_tokens;
    plan.first_split = p.window > 0 ? larger(position + 1 - p.window, 0) / kAttentionSplit : 0;
    plan.splits = queries > 0 ? (p.seq_lens[s] - 1) / kAttentionSplit + 1 - plan.first_split : 0;
    const int64_t head_rows = larger(smaller(queries, call.tile_tokens), 1) * call.group;
    plan.tile_heads = smaller(larger(call.max_rows / head_rows, 1), p.cache.kv_heads);
    heads += plan.tiles * plan.splits * ((p.cache.kv_heads + plan.tile_heads - 1) / plan.tile_heads);
    total += plan.tiles * plan.splits * p.cache.kv_heads;
  }
  int64_t items = 0, parts = 0;
  for (int64_t s = 0; s < p.sequences; ++s) {
    SequencePlan& plan = plans[s];
    if (heads < 2 * threads) plan.tile_heads = 1;
    plan.head_tiles = (p.cache.kv_heads + plan.tile_heads - 1) / plan.tile_heads;
    plan.first_item = items;
    plan.first_partial = parts;
    plan.spread = threads > 1 && plan.splits > 1 && plan.splits * plan.tile_heads * threads * 4 > total;
    const int64_t tiles = plan.tiles * plan.head_tiles;
    if (plan.spread) parts += tiles * plan.splits;
    items += plan.spread ? tiles * plan.splits : tiles;
  }
  plans[p.sequences].first_item = items;
  plans[p.sequences].first_partial = parts;
}

// The splits [split, end) of a tile; partial: where the result is kept to be merged, or -1.
struct Item {
  Tile tile;
  int64_t split, end, partial;
};

// Where one thread is among the items of all; next: of those that nobody has taken, the first.
class Items {
 public:
  Items(const AttentionCall& call, const SequencePlan* plans, int64_t* next) : call(call), plans(plans), next(next) {}

  bool take(Item& item) {
    const int64_t taken = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
    if (taken >= plans[call.p.sequences].first_item) return false;
    while (plans[sequence + 1].first_item <= taken) ++sequence;
    const SequencePlan& plan = plans[sequence];
    const int64_t index = taken - plan.first_item;
    if (plan.spread) {
      const int64_t split = plan.first_split + index % plan.splits;
      const Tile tile = tile_of(call, plan, sequence, index / plan.splits);
      item = {tile, split, split + 1, plan.first_partial + index};
    } else {
      item = {tile_of(call, plan, sequence, index), plan.first_split, plan.first_split + plan.splits, -1};
    }
    return true;
  }

 private:
  const AttentionCall& call;
  const SequencePlan* plans;
  int64_t* next;
  int64_t sequence = 0;
};

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

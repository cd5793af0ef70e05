#include "cpu/attention_tile.h"
#include "cpu/kernels.h"
#include "cpu/vec.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileRows = 48;  // query rows that share every key and value loaded
constexpr int64_t kSplitGranules = kAttentionSplit / kGranule;
constexpr int64_t kScoreStride = kAttentionSplit + kLanes;  // no power of two: rows would fall on the same cache sets

enum Scratch { kPlan, kPartials, kWork };

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

float exp1(float x) {
  float lanes[kLanes];
  store(lanes, exp(broadcast(x)));
  return lanes[0];
}

// c * tanh(x / c), with tanh(y) = 1 - 2 / (exp(2y) + 1).
PYBATCH_INLINE F32x16 soft_capped(F32x16 x, float cap) {
  const F32x16 e = exp(x * broadcast(2.0f / cap)), one = broadcast(1.0f);
  return broadcast(cap) * (one - broadcast(2.0f) / (e + one));
}

// Rows of queries that share one KV head: row r is token first + r / group, head kv_head * group + r % group.
struct Tile {
  int64_t sequence, kv_head, first, rows;
  int64_t position;  // of the first token
};

// The tokens [begin, end) that a row sees, counted from the start of a split.
struct Range {
  int64_t begin, end;
};

// Softmax over a part of the tokens, not yet normalised. sum = 0: the row has seen no token.
struct Partial {
  float* max;  // [rows]
  float* sum;  // [rows]
  float* acc;  // [rows, padded depth]
};

class Attention {
 public:
  explicit Attention(const PagedAttentionParams& p)
      : p(p), group(p.heads / p.cache.kv_heads), depth(p.cache.head_dim), padded_depth(round_up(depth, kLanes)) {
    tile_tokens = kTileRows / group > 1 ? kTileRows / group : 1;
    max_rows = round_up(tile_tokens * group, kLanes);
  }

  void run();

 private:
  // What is to do for one sequence: an item is a tile, or (spread) one split of a tile.
  struct Plan {
    int64_t first_item, tiles, first_split, splits;
    bool spread;
    int64_t first_partial;
  };

  int64_t make_plan(Plan* plans, int64_t threads);
  void run_items(const Plan* plans, int64_t items, int64_t* next);
  void merge_spread(const Plan* plans);

  Tile tile_of(const Plan& plan, int64_t sequence, int64_t index) const;
  Range range_of(const Tile& tile, int64_t row, int64_t split) const;
  int64_t partial_floats() const { return max_rows * (padded_depth + 2); }
  Partial partial_at(float* base) const { return {base, base + max_rows, base + 2 * max_rows}; }

  void load_queries(const Tile& tile, float* q) const;
  void attend(const Tile& tile, int64_t split, const float* q, float* scratch, Partial out) const;
  template <class T>
  void attend(const Tile& tile, int64_t split, const float* q, float* scratch, Partial out) const;
  void softmax(float* scores, Range range, const float* k_scale, const float* v_scale, float* max, float* sum) const;
  void merge(const Tile& tile, Partial part, Partial into) const;
  void finish(const Tile& tile, Partial state) const;

  const PagedAttentionParams& p;
  int64_t group, depth, padded_depth, tile_tokens, max_rows;
  float* partials = nullptr;
};

Tile Attention::tile_of(const Plan& plan, int64_t sequence, int64_t index) const {
  const int64_t begin = p.query_start[sequence], queries = p.query_start[sequence + 1] - begin;
  const int64_t token = (plan.tiles - 1 - index % plan.tiles) * tile_tokens;  // the longest first
  const int64_t tokens = queries - token < tile_tokens ? queries - token : tile_tokens;
  return {sequence, index / plan.tiles, begin + token, tokens * group, p.seq_lens[sequence] - queries + token};
}

Range Attention::range_of(const Tile& tile, int64_t row, int64_t split) const {
  const int64_t position = tile.position + row / group, origin = split * kAttentionSplit;
  int64_t begin = p.window > 0 ? position + 1 - p.window - origin : 0, end = position + 1 - origin;
  begin = begin > 0 ? begin : 0;
  end = end < kAttentionSplit ? end : kAttentionSplit;
  return {begin, end > begin ? end : begin};
}

void Attention::load_queries(const Tile& tile, float* q) const {
  const F32x16 scale = broadcast(p.scale);
  with_float_type(p.q.dtype, [&]<class T>(T*) {
    for (int64_t row = 0; row < tile.rows; ++row, q += padded_depth) {
      const T* from = static_cast<const T*>(p.q.data) + (tile.first + row / group) * p.q.row_stride +
                      (tile.kv_head * group + row % group) * depth;
      for (int64_t i = 0; i < depth; i += kLanes) store(q + i, load_first(from + i, depth - i) * scale);
    }
  });
}

// Turns a row of scores into probabilities relative to their own maximum; only lanes in range are read as numbers.
void Attention::softmax(float* scores, Range range, const float* k_scale, const float* v_scale, float* max_out,
                        float* sum_out) const {
  const F32x16 nothing = broadcast(-__builtin_inff());
  const int64_t first = range.begin / kLanes * kLanes;
  F32x16 largest = nothing;
  for (int64_t i = first; i < range.end; i += kLanes) {
    F32x16 s = load(scores + i);
    if (k_scale) s = s * load(k_scale + i);
    if (p.soft_cap > 0) s = soft_capped(s, p.soft_cap);
    if (range.end - i < kLanes) s = select_first(range.end - i, s, nothing);
    if (range.begin > i) s = select_first(range.begin - i, nothing, s);
    store(scores + i, s);
    largest = max(largest, s);
  }
  *max_out = reduce_max(largest);
  const F32x16 shift = broadcast(*max_out);
  F32x16 sum = zeros();
  for (int64_t i = first; i < range.end; i += kLanes) {
    F32x16 e = exp(load(scores + i) - shift);
    sum = sum + e;
    if (v_scale) e = e * load(v_scale + i);
    store(scores + i, e);
  }
  *sum_out = reduce_add(sum);
}

template <class T>
void Attention::attend(const Tile& tile, int64_t split, const float* q, float* scratch, Partial out) const {
  const KvCache& cache = p.cache;
  const Range all = {range_of(tile, 0, split).begin, range_of(tile, tile.rows - 1, split).end};
  for (int64_t row = 0; row < tile.rows; ++row) out.sum[row] = 0;
  if (all.begin >= all.end) return;

  float* const score = scratch;
  float* const k_scale = score + max_rows * kScoreStride;
  float* const v_scale = k_scale + kAttentionSplit;
  const bool scaled = cache.dtype == DType::i8;

  // Where the tokens lie. A column of sixteen may end past the last block; its second half then repeats the first.
  const T *k[kSplitGranules], *v[kSplitGranules];
  const int64_t first_column = all.begin / kLanes, end_column = (all.end + kLanes - 1) / kLanes;
  const int32_t* table = p.block_tables + tile.sequence * p.block_table_stride;
  for (int64_t g = 2 * first_column; g < 2 * end_column; ++g) {
    const int64_t within = g * kGranule < all.end ? g : g - 1;
    const int64_t token = split * kAttentionSplit + within * kGranule;
    const int64_t block = table[token / cache.block_size], offset = token % cache.block_size;
    const int64_t head = tile.kv_head * depth * cache.block_size;
    k[g] = static_cast<const T*>(cache.k) + block * cache.k_block_stride + head + offset;
    v[g] = static_cast<const T*>(cache.v) + block * cache.v_block_stride + head + offset * depth;
    if (scaled) {
      const int64_t at = tile.kv_head * cache.block_size + offset;
      std::memcpy(k_scale + g * kGranule, cache.k_scale + block * cache.k_scale_block_stride + at, kGranule * 4);
      std::memcpy(v_scale + g * kGranule, cache.v_scale + block * cache.v_scale_block_stride + at, kGranule * 4);
    }
  }

  for (int64_t c = first_column; c < end_column;) {
    const bool wide = end_column - c >= kColumns;
    for (int64_t row = 0, n; row < tile.rows; row += n) {
      n = rows_at_once(tile.rows - row);
      with_rows(n, [&]<int rows>(Count<rows>) {
        auto with = [&](auto kernel) {
          kernel(q + row * padded_depth, padded_depth, k + 2 * c, cache.block_size, depth,
                 score + row * kScoreStride + c * kLanes, kScoreStride);
        };
        if (cache.block_size == kGranule) {
          wide ? with(scores<rows, kColumns, true, T>) : with(scores<rows, 1, true, T>);
        } else {
          wide ? with(scores<rows, kColumns, false, T>) : with(scores<rows, 1, false, T>);
        }
      });
    }
    c += wide ? kColumns : 1;
  }

  for (int64_t row = 0; row < tile.rows; ++row) {
    const Range range = range_of(tile, row, split);
    if (range.begin == range.end) continue;
    softmax(score + row * kScoreStride, range, scaled ? k_scale : nullptr, scaled ? v_scale : nullptr, out.max + row,
            out.sum + row);
    for (int64_t i = 0; i < padded_depth; i += kLanes) store(out.acc + row * padded_depth + i, zeros());
  }

  // Values of tokens outside a row's range are never multiplied, not even by zero: they may be NaN, or unwritten.
  for (int64_t row = 0, n; row < tile.rows; row += n) {
    n = rows_at_once(tile.rows - row);
    auto weigh_rows = [&](int64_t first, int64_t count, int64_t begin, int64_t end) {
      if (begin >= end) return;
      with_rows(count, [&]<int rows>(Count<rows>) {
        auto with = [&](auto kernel, int64_t column) {
          kernel(score + first * kScoreStride, kScoreStride, v, depth, column, begin, end,
                 out.acc + first * padded_depth, padded_depth);
        };
        int64_t column = 0;
        for (; column + kColumns * kLanes <= depth; column += kColumns * kLanes) {
          with(weigh<rows, kColumns, false, T>, column);
        }
        for (; column + kLanes <= depth; column += kLanes) with(weigh<rows, 1, false, T>, column);
        if (column < depth) with(weigh<rows, 1, true, T>, column);
      });
    };
    const Range first = range_of(tile, row, split), last = range_of(tile, row + n - 1, split);
    const int64_t begin = last.begin, end = first.end > begin ? first.end : begin;  // what all rows see
    if (begin >= first.end) {
      for (int64_t r = row; r < row + n; ++r) {
        const Range own = range_of(tile, r, split);
        weigh_rows(r, 1, own.begin, own.end);
      }
      continue;
    }
    for (int64_t r = row; r < row + n; ++r) weigh_rows(r, 1, range_of(tile, r, split).begin, begin);
    weigh_rows(row, n, begin, end);
    for (int64_t r = row; r < row + n; ++r) weigh_rows(r, 1, end, range_of(tile, r, split).end);
  }
}

void Attention::attend(const Tile& tile, int64_t split, const float* q, float* scratch, Partial out) const {
  if (p.cache.dtype == DType::i8) return attend<int8_t>(tile, split, q, scratch, out);
  with_float_type(p.cache.dtype, [&]<class T>(T*) { attend<T>(tile, split, q, scratch, out); });
}

void Attention::merge(const Tile& tile, Partial part, Partial into) const {
  for (int64_t row = 0; row < tile.rows; ++row) {
    if (part.sum[row] == 0) continue;
    float* acc = into.acc + row * padded_depth;
    const float* more = part.acc + row * padded_depth;
    if (into.sum[row] == 0) {
      into.max[row] = part.max[row];
      into.sum[row] = part.sum[row];
      std::memcpy(acc, more, static_cast<size_t>(padded_depth) * sizeof(float));
      continue;
    }
    const float a = into.max[row], b = part.max[row], top = a > b ? a : b;
    const float keep = exp1(a - top), add = exp1(b - top);
    into.max[row] = top;
    into.sum[row] = into.sum[row] * keep + part.sum[row] * add;
    for (int64_t i = 0; i < depth; i += kLanes) {
      store(acc + i, fma(load(more + i), broadcast(add), load(acc + i) * broadcast(keep)));
    }
  }
}

void Attention::finish(const Tile& tile, Partial state) const {
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t head = tile.kv_head * group + row % group;
    float sum = state.sum[row], keep = 1.0f;
    if (p.sinks) {
      const float a = state.max[row], b = p.sinks[head], top = a > b ? a : b;
      keep = exp1(a - top);
      sum = sum * keep + exp1(b - top);
    }
    const F32x16 factor = broadcast(keep / sum);
    const float* acc = state.acc + row * padded_depth;
    with_float_type(p.out.dtype, [&]<class T>(T*) {
      T* to = static_cast<T*>(p.out.data) + (tile.first + row / group) * p.out.row_stride + head * depth;
      for (int64_t i = 0; i < depth; i += kLanes) store_first(to + i, load(acc + i) * factor, depth - i);
    });
  }
}

int64_t Attention::make_plan(Plan* plans, int64_t threads) {
  int64_t total = 0;
  for (int64_t s = 0; s < p.sequences; ++s) {
    const int64_t queries = p.query_start[s + 1] - p.query_start[s], position = p.seq_lens[s] - queries;
    Plan& plan = plans[s];
    plan.tiles = (queries + tile_tokens - 1) / tile_tokens;
    const int64_t seen = p.window > 0 && position + 1 > p.window ? position + 1 - p.window : 0;
    plan.first_split = seen / kAttentionSplit;
    plan.splits = queries > 0 ? (p.seq_lens[s] - 1) / kAttentionSplit + 1 - plan.first_split : 0;
    total += plan.tiles * plan.splits * p.cache.kv_heads;
  }
  int64_t items = 0, parts = 0;
  for (int64_t s = 0; s < p.sequences; ++s) {
    Plan& plan = plans[s];
    plan.first_item = items;
    plan.first_partial = parts;
    plan.spread = threads > 1 && plan.splits > 1 && plan.splits * threads * 4 > total;
    const int64_t tiles = plan.tiles * p.cache.kv_heads;
    if (plan.spread) parts += tiles * plan.splits;
    items += plan.spread ? tiles * plan.splits : tiles;
  }
  plans[p.sequences].first_item = items;
  plans[p.sequences].first_partial = parts;
  return items;
}

void Attention::run_items(const Plan* plans, int64_t items, int64_t* next) {
  const int64_t q_floats = max_rows * padded_depth;
  float* const q = static_cast<float*>(
      thread_scratch(kWork, (q_floats + 2 * partial_floats() + max_rows * kScoreStride + 2 * kAttentionSplit) * 4));
  const Partial state = partial_at(q + q_floats), part = partial_at(q + q_floats + partial_floats());
  float* const scratch = q + q_floats + 2 * partial_floats();

  int64_t sequence = 0;
  while (true) {
    const int64_t item = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
    if (item >= items) return;
    while (plans[sequence + 1].first_item <= item) ++sequence;
    const Plan& plan = plans[sequence];
    const int64_t index = item - plan.first_item;
    if (plan.spread) {
      const Tile tile = tile_of(plan, sequence, index / plan.splits);
      load_queries(tile, q);
      attend(tile, plan.first_split + index % plan.splits, q, scratch,
             partial_at(partials + (plan.first_partial + index) * partial_floats()));
      continue;
    }
    const Tile tile = tile_of(plan, sequence, index);
    load_queries(tile, q);
    for (int64_t row = 0; row < tile.rows; ++row) state.sum[row] = 0;
    for (int64_t split = plan.first_split; split < plan.first_split + plan.splits; ++split) {
      attend(tile, split, q, scratch, part);
      merge(tile, part, state);
    }
    finish(tile, state);
  }
}

void Attention::merge_spread(const Plan* plans) {
  for (int64_t s = 0; s < p.sequences; ++s) {
    const Plan& plan = plans[s];
    if (!plan.spread) continue;
    for (int64_t index = 0; index < plan.tiles * p.cache.kv_heads; ++index) {
      const Tile tile = tile_of(plan, s, index);
      float* base = partials + (plan.first_partial + index * plan.splits) * partial_floats();
      for (int64_t split = 1; split < plan.splits; ++split) {
        merge(tile, partial_at(base + split * partial_floats()), partial_at(base));
      }
      finish(tile, partial_at(base));
    }
  }
}

void Attention::run() {
  const int64_t threads = executor().num_threads();
  auto* plans = static_cast<Plan*>(thread_scratch(kPlan, (p.sequences + 1) * static_cast<int64_t>(sizeof(Plan))));
  const int64_t items = make_plan(plans, threads);
  partials = static_cast<float*>(thread_scratch(kPartials, plans[p.sequences].first_partial * partial_floats() * 4));
  int64_t next = 0;
  parallel_for(items < threads ? items : threads, 1, [&](int64_t, int64_t) { run_items(plans, items, &next); });
  if (plans[p.sequences].first_partial > 0) merge_spread(plans);
}

}  // namespace

void paged_attention(const PagedAttentionParams& p) { Attention(p).run(); }

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

#include "pybatch/attention.h"

#include <initializer_list>

#include "cpu/attention_rows.h"
#include "cpu/attention_softmax.h"
#include "cpu/vec.h"
#include "pybatch/parallel.h"

#if defined(PYBATCH_ISA_AMX)
#include "cpu/attention_panel.h"
#endif

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileRows = 48;  // query rows that share every key and value loaded
constexpr int64_t kSplitGranules = kAttentionSplit / kGranule;
constexpr int64_t kColumnGranules = kLanes / kGranule;
constexpr int64_t kScoreStride =
    kAttentionSplit + kLanes;  // not a power of two, which would put rows in the same cache sets

#if defined(PYBATCH_ISA_AMX)
constexpr bool kPanels = true;  // attention_panel.h
#else
constexpr bool kPanels = false;
#endif

enum Scratch { kPlan, kPartials, kWork };

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Queries that attend to the same tokens together, a block of rows for each of their KV heads: row r of KV head h is
// token first + r / group, head (kv_head + h) * group + r % group.
struct Tile {
  int64_t sequence, kv_head, kv_heads, first, tokens;
  int64_t position;  // of the first token
};

// Where the granules of a split are: the first element of the tile's first KV head.
template <class T>
struct Split {
  const T* k[kSplitGranules];
  const f16* k_scale[kSplitGranules];
  const f16* v_scale[kSplitGranules];
  const T* const* v;  // among the pieces
  // The same as pieces of memory in reading order: keys, values, and what is read after this split.
  const T* pieces[2 * kSplitGranules + kAhead];
};

// Unnormalised softmax over a part of the tokens. sum = 0: the row has seen no token.
struct Partial {
  float* max;  // [rows]
  float* sum;  // [rows]
  float* acc;  // [rows, padded depth]
};

// Rows [row, row + rows) of KV heads [head, head_end) of a tile. They go through a split together, so that their scores
// stay in the L1 cache.
struct Block {
  int64_t head, head_end, row, rows;
  Range ranges[kRows];
  Range columns;  // what any of them sees, as whole vectors
};

// A thread's buffers for products of panels.
struct Panels {
  uint8_t* q;    // digits of every row
  uint8_t* p;    // digits of one block, for each group
  int8_t* keys;  // of a split
  int8_t* values;
};
// The tokens of a split whose keys and values are in panels are those before.
struct Unpacked {
  int64_t keys = 0, values = 0;
};

// A thread's buffers.
struct Workspace {
  float* q;        // [rows, padded depth]; of a quantised cache as words in the first half of a row, or in panels
  float* q_scale;  // [rows], quantised caches only
  float* score;    // of one block, [rows, kScoreStride], then probabilities; of an int8 cache in words as q
  float* p_scale;  // [rows, groups], quantised caches only
  int16_t* p;      // the same as words, [KV heads of the tile, groups, rows of a block, kScoreStride], int4 caches only
  Panels panels;
};

class Attention {
 public:
  explicit Attention(const PagedAttentionParams& p)
      : p(p),
        group(p.heads / p.cache.kv_heads),
        depth(p.cache.head_dim),
        padded_depth(round_up(depth, kLanes)),
        head_stride(depth * p.cache.block_size),
        groups(p.cache.groups()),
        scale_stride(groups * p.cache.block_size),
        block_shift(__builtin_ctzll(static_cast<unsigned long long>(p.cache.block_size))) {
    tile_tokens = larger(kTileRows / group, 1);
    max_rows = round_up(tile_tokens * group, kLanes);
  }

  void run();

 private:
  // The work for one sequence: an item is a tile, or (spread) one split of a tile.
  struct Plan {
    int64_t first_item, tiles, tile_heads, head_tiles, first_split, splits;
    bool spread;
    int64_t first_partial;
  };
  // The splits [split, end) of a tile; partial: where the result is kept to be merged, or -1.
  struct Item {
    Tile tile;
    int64_t split, end, partial;
  };

  int64_t make_plan(Plan* plans, int64_t threads);
  int64_t lay_out(char* base, Workspace& work, Partial& state, Partial& part) const;
  void run_items(const Plan* plans, int64_t items, int64_t* next, Workspace work, Partial state, Partial part);
  void merge_spread(const Plan* plans);

  float* scores_of(Workspace work, const Block& block, int64_t h) const {
    return work.score + (h - block.head) * block.rows * kScoreStride;
  }
  int16_t* words_of(Workspace work, const Block& block, int64_t h, int64_t group) const {
    return work.p + ((h - block.head) * groups + group) * block.rows * kScoreStride;
  }
  int64_t row_of(const Tile& tile, const Block& block, int64_t h) const { return h * head_rows(tile) + block.row; }

  Tile tile_of(const Plan& plan, int64_t sequence, int64_t index) const;
  Range range_of(const Tile& tile, int64_t row, int64_t split) const;
  int64_t partial_floats() const { return max_rows * (padded_depth + 2); }
  Partial partial(int64_t index) const { return partial_at(partials + index * partial_floats()); }
  Partial partial_at(float* base) const { return {base, base + max_rows, base + 2 * max_rows}; }
  int64_t head_rows(const Tile& tile) const { return tile.tokens * group; }
  int64_t rows(const Tile& tile) const { return tile.kv_heads * head_rows(tile); }

  void load_queries(const Tile& tile, Workspace work) const;
  void attend(const Tile& tile, int64_t split, const Tile& then, int64_t then_split, Workspace work, Partial out) const;
  template <class T>
  void locate(const Tile& tile, int64_t split, Range columns, const Tile& then, int64_t then_split,
              Split<T>& out) const;
  template <class T, bool panels>
  void attend(const Tile& tile, int64_t split, const Tile& then, int64_t then_split, Workspace work, Partial out) const;
  F32x16 scales_of(const f16* const* granules, int64_t h, int64_t g, int64_t i) const {
    const int64_t offset = h * scale_stride + g * p.cache.block_size;
    return load_halves(granules[i / kGranule] + offset, granules[i / kGranule + 1] + offset);
  }
  // Queries that are few are bound by memory, and their products hide behind it.
  bool from_panels(const Tile& tile) const { return kPanels && p.cache.has_scales() && head_rows(tile) > kRows; }
#if defined(PYBATCH_ISA_AMX)
  // Bytes of the digits of a row of queries, and of a group of probabilities of a block.
  int64_t q_digit_bytes() const { return 3 * kStep * (p.cache.dtype == DType::i4 ? groups : steps_of(depth)); }
  int64_t p_digit_bytes() const { return steps_of(kAttentionSplit) * step_bytes(kRows); }
  int64_t key_panel_bytes() const { return depth / kQuad * kQuadBytes; }
  void split_queries(const Tile& tile, Workspace work) const;
#endif
  template <class T>
  void score_panels(const Tile& tile, const Split<T>& at, const Block& block, Workspace work, Unpacked& unpacked) const;
  template <class T>
  void weigh_panels(const Tile& tile, const Split<T>& at, const Block& block, Workspace work, Unpacked& unpacked,
                    Partial out) const;
  template <class T>
  void score(const Tile& tile, const Split<T>& at, const Block& block, Workspace work) const;
  template <class T, bool panels>
  void softmax(const Tile& tile, const Split<T>& at, const Block& block, Workspace work, Partial out) const;
  template <class T>
  void weigh(const Tile& tile, const Split<T>& at, const Block& block, Workspace work, Partial out) const;
  template <int write, class Rows>
  void fetch_rows(const Rows& of, const Tile& tile, int64_t first, int64_t end) const;
  void merge(const Tile& tile, Partial part, Partial into) const;
  void finish(const Tile& tile, Partial state) const;

  const PagedAttentionParams& p;
  int64_t group, depth, padded_depth;
  int64_t head_stride;           // of a block, in elements
  int64_t groups, scale_stride;  // scales of a head and token, and of a head in a block
  int64_t block_shift, tile_tokens, max_rows;
  float* partials = nullptr;
};

Tile Attention::tile_of(const Plan& plan, int64_t sequence, int64_t index) const {
  const int64_t begin = p.query_start[sequence], queries = p.query_start[sequence + 1] - begin;
  const int64_t token = (plan.tiles - 1 - index % plan.tiles) * tile_tokens;  // the longest first
  const int64_t kv_head = index / plan.tiles * plan.tile_heads;
  return {sequence,
          kv_head,
          smaller(plan.tile_heads, p.cache.kv_heads - kv_head),
          begin + token,
          smaller(queries - token, tile_tokens),
          p.seq_lens[sequence] - queries + token};
}

Range Attention::range_of(const Tile& tile, int64_t row, int64_t split) const {
  const int64_t position = tile.position + row / group - split * kAttentionSplit;
  const int64_t begin = p.window > 0 ? smaller(larger(position + 1 - p.window, 0), kAttentionSplit) : 0;
  return {begin, larger(smaller(position + 1, kAttentionSplit), begin)};
}

void Attention::load_queries(const Tile& tile, Workspace work) const {
  float* to = work.q;
  const F32x16 scale = broadcast(p.scale * kLog2E);
  with_float_type(p.q.dtype, [&]<class T>(T*) {
    for (int64_t h = 0; h < tile.kv_heads; ++h) {
      for (int64_t row = 0; row < head_rows(tile); ++row, to += padded_depth) {
        const T* from = static_cast<const T*>(p.q.data) + (tile.first + row / group) * p.q.row_stride +
                        ((tile.kv_head + h) * group + row % group) * depth;
        for (int64_t i = 0; i < depth; i += kLanes) store(to + i, load_first(from + i, depth - i) * scale);
      }
    }
  });
  if (!p.cache.has_scales()) return;
#if defined(PYBATCH_ISA_AMX)
  if (from_panels(tile)) return split_queries(tile, work);
#endif
  for (int64_t row = 0; row < rows(tile); ++row) {
    float* q = work.q + row * padded_depth;
    auto* words = reinterpret_cast<int16_t*>(q);
    work.q_scale[row] =
        narrow(q, padded_depth, [&](int64_t i, I32x16 x) PYBATCH_INLINE_LAMBDA { store_words(words + i, x); });
  }
}

// Finds the tokens of a split. A column of sixteen may end past the last token; it then repeats the last granule.
template <class T>
void Attention::locate(const Tile& tile, int64_t split, Range columns, const Tile& then, int64_t then_split,
                       Split<T>& out) const {
  const KvCache& cache = p.cache;
  struct Place {
    int64_t block, offset;
  };
  auto place_of = [&](const Tile& tile, int64_t split, int64_t granule) -> Place {
    const int64_t wanted = split * kAttentionSplit + granule * kGranule;
    const int64_t token = smaller(wanted, p.seq_lens[tile.sequence] - 1);
    return {p.block_tables[tile.sequence * p.block_table_stride + (token >> block_shift)],
            token & (cache.block_size - 1) & -kGranule};
  };
  auto key = [&](const Tile& tile, Place at) {
    return static_cast<const T*>(cache.k) + at.block * cache.k_block_stride + tile.kv_head * head_stride / kElements<T>;
  };
  const int64_t first = columns.begin * kColumnGranules, end = columns.end * kColumnGranules;
  const T** pieces = out.pieces + end;
  out.v = pieces - first;
  for (int64_t g = first; g < end; ++g) {
    const Place at = place_of(tile, split, g);
    out.k[g] = key(tile, at) + at.offset * kKeyRun<T>;
    out.pieces[g] = key(tile, at) + at.offset * depth / kElements<T>;
    *pieces++ = static_cast<const T*>(cache.v) + at.block * cache.v_block_stride +
                (tile.kv_head * head_stride + at.offset * depth) / kElements<T>;
    if constexpr (sizeof(T) == 1) {
      const int64_t scale = tile.kv_head * scale_stride + at.offset;
      out.k_scale[g] = static_cast<const f16*>(cache.k_scale) + at.block * cache.k_scale_block_stride + scale;
      out.v_scale[g] = static_cast<const f16*>(cache.v_scale) + at.block * cache.v_scale_block_stride + scale;
      if (g > first && at.offset > 0) continue;
      for (int64_t i = 0; i < tile.kv_heads * scale_stride; i += 64 / static_cast<int64_t>(sizeof(f16))) {
        fetch<64>(out.k_scale[g] + i);
        fetch<64>(out.v_scale[g] + i);
      }
    }
  }
  const int64_t then_first = range_of(then, 0, then_split).begin / kGranule;
  for (int64_t i = 0; i < kAhead; ++i) {
    const Place at = place_of(then, then_split, then_first + i);
    *pieces++ = key(then, at) + at.offset * depth / kElements<T>;
  }
}

// Prefetches the queries, or (write) the output, of a tile's tokens [first, end).
template <int write, class Rows>
PYBATCH_INLINE void Attention::fetch_rows(const Rows& of, const Tile& tile, int64_t first, int64_t end) const {
  const int64_t size = size_of(of.dtype), bytes = tile.kv_heads * group * depth * size;
  for (int64_t token = tile.first + first; token < tile.first + smaller(end, tile.tokens); ++token) {
    const char* row = static_cast<const char*>(of.data) + (token * of.row_stride + tile.kv_head * group * depth) * size;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, write, 2);
  }
}

// Heads alternate over columns and tokens that are adjacent in memory.
template <class T>
void Attention::score(const Tile& tile, const Split<T>& at, const Block& block, Workspace work) const {
  const int64_t ahead = block.row == 0 ? kAhead : 0;  // the first block brings the split into L2
  for (int64_t i = block.columns.begin, width; i < block.columns.end; i += width * kLanes) {
    width = smaller((block.columns.end - i) / kLanes, kColumns);
    const int64_t g = i / kGranule;
    for (int64_t h = block.head; h < block.head_end; ++h) {
      const Granules<T> keys = {at.k + g, at.pieces + g + ahead, h * head_stride / kElements<T>};
      const int64_t row = row_of(tile, block, h);
      const float* q = work.q + row * padded_depth;
      float* out = scores_of(work, block, h) + i;
      if constexpr (kElements<T> > 1) {
        auto scales = [&](int64_t group, int64_t column)
                          PYBATCH_INLINE_LAMBDA { return scales_of(at.k_scale, h, group, i + column); };
        score_rows(q, padded_depth, block.rows, keys, p.cache.block_size, width, depth, work.q_scale + row, scales, out,
                   kScoreStride);
      } else {
        score_rows(q, padded_depth, block.rows, keys, p.cache.block_size, width, depth, out, kScoreStride);
      }
    }
  }
}

#if defined(PYBATCH_ISA_AMX)

// Queries as digits, block by block. Those past the depth are zeros.
void Attention::split_queries(const Tile& tile, Workspace work) const {
  const bool int4 = p.cache.dtype == DType::i4;
  const int64_t count = head_rows(tile);
  for (int64_t row = 0, rows; row < this->rows(tile); row += rows) {
    rows = rows_at_once(count - row % count);
    uint8_t* digits = work.panels.q + row * q_digit_bytes();
    std::memset(digits, 0, static_cast<size_t>(rows * q_digit_bytes()));
    for (int64_t r = 0; r < rows; ++r) {
      auto store = [&](int64_t i, I32x16 words) PYBATCH_INLINE_LAMBDA {
        const __m128i high = high_digits(words), low = low_digits(words);
        if (!int4) return store_digits(digits, rows, r, i, high, low);
        const int64_t at = i / kInt4Group * kStep + i % kInt4Group;  // a step for each group
        store_digits(digits, rows, r, at, as_int4_keys(high), as_int4_keys(low));
      };
      work.q_scale[row + r] = narrow(work.q + (row + r) * padded_depth, padded_depth, store);
    }
  }
}

template <class T>
void Attention::score_panels(const Tile& tile, const Split<T>& at, const Block& block, Workspace work,
                             Unpacked& unpacked) const {
  const int64_t row = row_of(tile, block, block.head), offset = block.head * head_stride / kElements<T>;
  const uint8_t* digits = work.panels.q + row * q_digit_bytes();
  for (int64_t i = block.columns.begin, width; i < block.columns.end; i += width * kLanes) {
    width = smaller((block.columns.end - i) / kLanes, kColumns);
    int8_t* panel = work.panels.keys + i / kLanes * key_panel_bytes();
    if (const int64_t from = larger(unpacked.keys, i), end = i + width * kLanes; from < end) {
      const int64_t g = from / kGranule;
      unpack_keys<T>({at.k + g, at.pieces + g + kAhead, offset}, p.cache.block_size, (end - from) / kLanes, depth,
                     panel + (from - i) / kLanes * key_panel_bytes(), key_panel_bytes());
      unpacked.keys = end;
    }
    auto scales = [&](int64_t group, int64_t column)
                      PYBATCH_INLINE_LAMBDA { return scales_of(at.k_scale, block.head, group, i + column); };
    with_count<kRows>(block.rows, [&]<int rows>(Count<rows>) {
      score_columns<rows>(digits, panel, key_panel_bytes(), width, depth, work.q_scale + row, scales,
                          scores_of(work, block, block.head) + i, kScoreStride, Count<kElements<T>>());
    });
  }
}

// Probabilities outside a row's range are zeros, and what they are multiplied by are integers.
template <class T>
void Attention::weigh_panels(const Tile& tile, const Split<T>& at, const Block& block, Workspace work,
                             Unpacked& unpacked, Partial out) const {
  const Granules<T> values = {at.v, at.v + kAhead, block.head * head_stride / kElements<T>};
  const Range columns = block.columns;
  const uint8_t* digits = work.panels.p;
  auto* acc = reinterpret_cast<int32_t*>(out.acc + row_of(tile, block, block.head) * padded_depth);
  for (int64_t first = 0; first < depth; first += kValueWidth<T>) {
    int8_t* panel = work.panels.values + first / kLanes * kValuePanelBytes;
    if (const int64_t from = larger(unpacked.values, columns.begin); from < columns.end) {
      unpack_values(values, depth, first, from, columns.end, panel, kValuePanelBytes);
    }
    with_count<kRows>(block.rows, [&]<int rows>(Count<rows>) {
      constexpr int panels = kValuePanels<T>;
      alignas(64) int32_t sums[rows][panels * kLanes];
      multiply<rows, panels>(digits, panel, kValuePanelBytes, columns.begin / kQuad, columns.end / kQuad, sums[0],
                             panels * kLanes);
      for (int64_t r = 0; r < rows; ++r) {
        place_sums(sums[r], acc + r * padded_depth + first, smaller(depth - first, kValueWidth<T>), Count<panels>());
      }
    });
    if (groups > 1) digits += p_digit_bytes();
  }
  unpacked.values = larger(unpacked.values, columns.end);
}

#endif

// Turns scores into probabilities, not yet divided by their sum. With a quantised cache they become words.
template <class T, bool panels>
void Attention::softmax(const Tile& tile, const Split<T>& at, const Block& block, Workspace work, Partial out) const {
  const Range columns = block.columns;
  for (int64_t h = block.head; h < block.head_end; ++h) {
    const int64_t row = row_of(tile, block, h);
    float* scores = scores_of(work, block, h);
    [[maybe_unused]] auto scales = [&](const f16* const* of, int64_t g) {
      return [this, of = of, h = h, g = g](int64_t i) PYBATCH_INLINE_LAMBDA { return scales_of(of, h, g, i); };
    };
    with_count<kRows>(block.rows, [&]<int rows>(Count<rows>) {
      if constexpr (sizeof(T) == 1 && kElements<T> == 1) {
        scale_scores<rows>(scores, kScoreStride, columns, work.q_scale + row, scales(at.k_scale, 0));
      }
      for (int r = 0; r < rows; ++r) {
        float* of_row = scores + r * kScoreStride;
        if (p.soft_cap > 0) soft_cap(of_row, columns, p.soft_cap * kLog2E);
        mask(of_row, columns, block.ranges[r]);
      }
      softmax_rows<rows>(scores, kScoreStride, columns, block.ranges, out.max + row, out.sum + row);
      for (int64_t g = 0; sizeof(T) == 1 && g < groups; ++g) {
        auto narrow = [&](const auto& store) PYBATCH_INLINE_LAMBDA {
          narrow_probabilities<rows>(scores, kScoreStride, columns, block.ranges, scales(at.v_scale, g),
                                     work.p_scale + row * groups + g, groups, store);
        };
        if constexpr (panels) {
#if defined(PYBATCH_ISA_AMX)
          uint8_t* digits = work.panels.p + g * p_digit_bytes();
          zero_ends(digits, rows, columns);
          narrow([&](int r, int64_t i, I32x16 words) PYBATCH_INLINE_LAMBDA {
            store_digits(digits, rows, r, i, high_digits(words), low_digits(words));
          });
#endif
        } else if constexpr (sizeof(T) == 1) {
          int16_t* to = kElements<T> > 1 ? words_of(work, block, h, g) : reinterpret_cast<int16_t*>(scores);
          const int64_t stride = kElements<T> > 1 ? kScoreStride : 2 * kScoreStride;
          narrow([&](int r, int64_t i, auto words) PYBATCH_INLINE_LAMBDA { store_words(to + r * stride + i, words); });
        }
      }
    });
  }
}

// Values outside a row's range are never multiplied, not even by zero: they may be NaN, unless they are integers. What
// all rows of a block see is weighed together, the rest before and after it row by row.
template <class T>
void Attention::weigh(const Tile& tile, const Split<T>& at, const Block& block, Workspace work, Partial out) const {
  const int64_t n = block.rows, ahead = block.row == 0 ? kAhead : 0;
  for (int64_t h = block.head; h < block.head_end; ++h) {
    float* acc = out.acc + row_of(tile, block, h) * padded_depth;
    for (int64_t i = 0; i < n * padded_depth; i += kLanes) store(acc + i, zeros());
  }
  const Range *ranges = block.ranges, top = ranges[0], bottom = ranges[n - 1];
  const Range common = {bottom.begin, larger(bottom.begin, top.end)};
  const int64_t ragged = top.begin == bottom.begin && top.end == bottom.end ? 0 : n;  // rows to do one by one
  const int64_t step = tile.kv_heads > 1 ? kColumns * kLanes : kAttentionSplit;
  for (int64_t from = block.columns.begin; from < bottom.end; from += step) {
    for (int64_t h = block.head; h < block.head_end; ++h) {
      const Granules<T> values = {at.v, at.v + ahead, h * head_stride / kElements<T>};
      const float* scores = scores_of(work, block, h);
      float* acc = out.acc + row_of(tile, block, h) * padded_depth;
      auto weigh = [&](int64_t first, int64_t count, int64_t begin, int64_t end) {
        begin = larger(begin, from);
        end = smaller(end, from + step);
        if constexpr (kElements<T> > 1) {
          weigh_rows(words_of(work, block, h, 0), kScoreStride, count, values, depth, begin, end,
                     reinterpret_cast<int32_t*>(acc), padded_depth);
        } else {
          weigh_rows(scores + first * kScoreStride, kScoreStride, count, values, depth, begin, end,
                     acc + first * padded_depth, padded_depth);
        }
      };
      if constexpr (sizeof(T) == 1) {
        weigh(0, n, top.begin / kQuad * kQuad, round_up(bottom.end, kQuad));
        continue;
      }
      for (int64_t r = 0; r < ragged; ++r) weigh(r, 1, ranges[r].begin, smaller(ranges[r].end, common.begin));
      weigh(0, n, common.begin, common.end);
      for (int64_t r = 0; r < ragged; ++r) weigh(r, 1, common.end, ranges[r].end);
    }
  }
}

// One split of a tile; `then` is what is read after it.
template <class T, bool panels>
void Attention::attend(const Tile& tile, int64_t split, const Tile& then, int64_t then_split, Workspace work,
                       Partial out) const {
  const int64_t head_rows = this->head_rows(tile);
  const int64_t begin = range_of(tile, 0, split).begin, end = range_of(tile, head_rows - 1, split).end;
  if (begin >= end) {
    for (int64_t row = 0; row < rows(tile); ++row) out.sum[row] = 0;
    return;
  }
  Split<T> at;
  locate(tile, split, {begin / kLanes, (end + kLanes - 1) / kLanes}, then, then_split, at);
  Block block;
  const int64_t heads = panels ? 1 : tile.kv_heads;
  for (block.head = 0; block.head < tile.kv_heads; block.head = block.head_end) {
    block.head_end = block.head + heads;
    [[maybe_unused]] Unpacked unpacked;
    for (block.row = 0; block.row < head_rows; block.row += block.rows) {
      block.rows = rows_at_once(head_rows - block.row);
      for (int64_t r = 0; r < block.rows; ++r) block.ranges[r] = range_of(tile, block.row + r, split);
      block.columns = {block.ranges[0].begin / kLanes * kLanes, round_up(block.ranges[block.rows - 1].end, kLanes)};
      if (block.head == 0) {  // a few at a time: L1 has few outstanding misses
        fetch_rows<0>(p.q, then, block.row / group, (block.row + block.rows) / group);
        fetch_rows<1>(p.out, tile, block.row / group, (block.row + block.rows) / group);
      }
      if constexpr (panels) {
        score_panels(tile, at, block, work, unpacked);
        softmax<T, true>(tile, at, block, work, out);
        weigh_panels(tile, at, block, work, unpacked, out);
      } else {
        score(tile, at, block, work);
        softmax<T, false>(tile, at, block, work, out);
        weigh(tile, at, block, work, out);
      }
    }
  }
  if constexpr (sizeof(T) == 1) {
    for (int64_t row = 0; row < rows(tile); ++row) {
      float* acc = out.acc + row * padded_depth;
      for (int64_t i = 0; i < depth; i += kLanes) {
        store(acc + i,
              to_float(load_ints(acc + i)) * broadcast(work.p_scale[row * groups + (groups > 1 ? i / kInt4Group : 0)]));
      }
    }
  }
}

void Attention::attend(const Tile& tile, int64_t split, const Tile& then, int64_t then_split, Workspace work,
                       Partial out) const {
  auto of_type = [&]<class T>(T*) {
    if constexpr (kPanels && sizeof(T) == 1) {
      if (from_panels(tile)) return attend<T, true>(tile, split, then, then_split, work, out);
    }
    attend<T, false>(tile, split, then, then_split, work, out);
  };
  if (p.cache.dtype == DType::i8) return of_type(static_cast<int8_t*>(nullptr));
  if (p.cache.dtype == DType::i4) return of_type(static_cast<i4x2*>(nullptr));
  with_float_type(p.cache.dtype, of_type);
}

void Attention::merge(const Tile& tile, Partial part, Partial into) const {
  for (int64_t row = 0; row < rows(tile); ++row) {
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
    const float keep = exp2(a - top), add = exp2(b - top);
    into.max[row] = top;
    into.sum[row] = into.sum[row] * keep + part.sum[row] * add;
    for (int64_t i = 0; i < depth; i += kLanes) {
      store(acc + i, fma(load(more + i), broadcast(add), load(acc + i) * broadcast(keep)));
    }
  }
}

void Attention::finish(const Tile& tile, Partial state) const {
  for (int64_t row = 0; row < rows(tile); ++row) {
    const int64_t of_head = row % head_rows(tile);
    const int64_t head = (tile.kv_head + row / head_rows(tile)) * group + of_head % group;
    float sum = state.sum[row], keep = 1.0f;
    if (p.sinks) {
      const float a = state.max[row], b = p.sinks[head] * kLog2E, top = a > b ? a : b;
      keep = exp2(a - top);
      sum = sum * keep + exp2(b - top);
    }
    const F32x16 factor = broadcast(keep / sum);
    const float* acc = state.acc + row * padded_depth;
    with_float_type(p.out.dtype, [&]<class T>(T*) {
      T* to = static_cast<T*>(p.out.data) + (tile.first + of_head / group) * p.out.row_stride + head * depth;
      for (int64_t i = 0; i < depth; i += kLanes) store_first(to + i, load(acc + i) * factor, depth - i);
    });
  }
}

int64_t Attention::make_plan(Plan* plans, int64_t threads) {
  int64_t heads = 0, total = 0;  // units of (head, tile, split): in items of the largest size, and in all
  for (int64_t s = 0; s < p.sequences; ++s) {
    const int64_t queries = p.query_start[s + 1] - p.query_start[s], position = p.seq_lens[s] - queries;
    Plan& plan = plans[s];
    plan.tiles = (queries + tile_tokens - 1) / tile_tokens;
    plan.first_split = p.window > 0 ? larger(position + 1 - p.window, 0) / kAttentionSplit : 0;
    plan.splits = queries > 0 ? (p.seq_lens[s] - 1) / kAttentionSplit + 1 - plan.first_split : 0;
    const int64_t head_rows = larger(smaller(queries, tile_tokens), 1) * group;
    plan.tile_heads = smaller(larger(max_rows / head_rows, 1), p.cache.kv_heads);
    heads += plan.tiles * plan.splits * ((p.cache.kv_heads + plan.tile_heads - 1) / plan.tile_heads);
    total += plan.tiles * plan.splits * p.cache.kv_heads;
  }
  int64_t items = 0, parts = 0;
  for (int64_t s = 0; s < p.sequences; ++s) {
    Plan& plan = plans[s];
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
  return items;
}

// Lays a thread's buffers out from `base` on, and returns their size in bytes.
int64_t Attention::lay_out(char* base, Workspace& work, Partial& state, Partial& part) const {
  int64_t used = 0;
  auto take = [&]<class T>(T*& buffer, int64_t count) {
    buffer = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
  };
  take(work.q, max_rows * padded_depth);
  take(work.score, max_rows * kScoreStride);
  take(work.p, p.cache.dtype == DType::i4 ? groups * max_rows * kScoreStride : 0);
  take(work.q_scale, max_rows);
  take(work.p_scale, max_rows * groups);
#if defined(PYBATCH_ISA_AMX)
  if (p.cache.has_scales()) {
    take(work.panels.q, max_rows * q_digit_bytes() + kTileBytes);
    take(work.panels.p, groups * p_digit_bytes() + kTileBytes);
    take(work.panels.keys, kAttentionSplit / kLanes * key_panel_bytes() + kTileBytes);
    take(work.panels.values, round_up(depth, kStep) / kLanes * kValuePanelBytes);
  }
#endif
  for (Partial* partial : {&state, &part}) {
    float* floats;
    take(floats, partial_floats());
    *partial = partial_at(floats);
  }
  return used;
}

void Attention::run_items(const Plan* plans, int64_t items, int64_t* next, Workspace work, Partial state,
                          Partial part) {
  int64_t sequence = 0;
  Item item;
  auto take = [&] {
    const int64_t taken = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
    if (taken >= items) return false;
    while (plans[sequence + 1].first_item <= taken) ++sequence;
    const Plan& plan = plans[sequence];
    const int64_t index = taken - plan.first_item;
    if (plan.spread) {
      const int64_t split = plan.first_split + index % plan.splits;
      item = {tile_of(plan, sequence, index / plan.splits), split, split + 1, plan.first_partial + index};
    } else {
      item = {tile_of(plan, sequence, index), plan.first_split, plan.first_split + plan.splits, -1};
    }
    return true;
  };

  for (bool more = take(); more;) {
    const Item now = item;
    const Partial into = now.partial < 0 ? state : partial(now.partial);
    load_queries(now.tile, work);
    for (int64_t split = now.split; split < now.end; ++split) {
      const bool last = split + 1 == now.end;
      if (last) more = take();  // as late as possible, so that another thread may take it before
      const int64_t then_split = !last ? split + 1 : more ? item.split : split;
      attend(now.tile, split, item.tile, then_split, work, split == now.split ? into : part);
      if (split > now.split) merge(now.tile, part, into);
    }
    if (now.partial < 0) finish(now.tile, into);
  }
}

void Attention::merge_spread(const Plan* plans) {
  for (int64_t s = 0; s < p.sequences; ++s) {
    const Plan& plan = plans[s];
    if (!plan.spread) continue;
    parallel_for(plan.tiles * plan.head_tiles, 4, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const Tile tile = tile_of(plan, s, index);
        const int64_t first = plan.first_partial + index * plan.splits;
        for (int64_t split = 1; split < plan.splits; ++split) merge(tile, partial(first + split), partial(first));
        finish(tile, partial(first));
      }
    });
  }
}

void Attention::run() {
  const int64_t threads = num_threads();
  auto* plans = static_cast<Plan*>(thread_scratch(kPlan, (p.sequences + 1) * static_cast<int64_t>(sizeof(Plan))));
  const int64_t items = make_plan(plans, threads);
  partials = static_cast<float*>(thread_scratch(kPartials, plans[p.sequences].first_partial * partial_floats() * 4));
  int64_t next = 0;
  parallel_for(smaller(items, threads), 1, [&](int64_t, int64_t) {
    Workspace work;
    Partial state, part;
    auto* base = static_cast<char*>(thread_scratch(kWork, lay_out(nullptr, work, state, part)));
    lay_out(base, work, state, part);
#if defined(PYBATCH_ISA_AMX)
    if (p.cache.has_scales()) {
      const TilesInUse tiles{TileShapes()};
      return run_items(plans, items, &next, work, state, part);
    }
#endif
    run_items(plans, items, &next, work, state, part);
  });
  if (plans[p.sequences].first_partial > 0) merge_spread(plans);
}

}  // namespace

void paged_attention(const PagedAttentionParams& p) { Attention(p).run(); }

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

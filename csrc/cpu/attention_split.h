// Attention of a tile of queries to one split of its tokens: scores, a softmax of its own, and the weighed values; of a
// quantised cache part by part (attention_parts.h).
#pragma once

#include "cpu/attention_partial.h"
#include "cpu/attention_parts.h"
#include "cpu/attention_places.h"
#include "cpu/attention_rows.h"

#if defined(PYBATCH_ISA_AMX)
#include "cpu/attention_panel.h"
#endif

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Not a power of two, which would put rows in the same cache sets.
template <class T>
constexpr int64_t kScoreStride = kPart<T> + kLanes;

#if defined(PYBATCH_ISA_AMX)
constexpr bool kPanels = true;  // attention_panel.h
#else
constexpr bool kPanels = false;
#endif

// Rows [row, row + rows) of KV heads [head, head_end) of a tile, and a part of a split's tokens.
struct Block {
  int64_t head, head_end, row, rows;
  int64_t first;  // token of the part, which the others are counted from
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
// The tokens of a split whose keys and values are in panels: those before.
struct Unpacked {
  int64_t keys = 0, values = 0;
};

// A thread's buffers.
struct Workspace {
  float* q;        // [rows, padded depth]; of a quantised cache as words in the first half of a row, as bytes
                   // (attention_bytes.h), or in panels
  float* q_scale;  // [rows], quantised caches only
  float* score;    // of one block, [rows, kScoreStride], then probabilities; of an int8 cache in words as q
  float* p_scale;  // [rows, groups], quantised caches only
  float* keep;     // [rows], likewise
  int16_t* p;      // those of a KV head as words, [groups, rows of a block, kScoreStride], int4 caches only
  Panels panels;
};

// With the buffers of one thread.
class SplitAttention : AttentionCall {
 public:
  explicit SplitAttention(const AttentionCall& call) : AttentionCall(call) {}

  // Lays the buffers out from `base` on, and returns their size in bytes.
  int64_t lay_out(char* base);

  // To be called before a tile's splits. Queries are scaled by log2(e) too (attention_softmax.h).
  void load_queries(const Tile& tile) const;
  // `then` and `then_split` are what is read after this split.
  void attend(const Tile& tile, int64_t split, const Tile& then, int64_t then_split, Partial out) const;

 private:
  template <class T>
  float* scores_of(const Block& block, int64_t h) const {
    return work.score + (h - block.head) * block.rows * kScoreStride<T>;
  }
  int64_t row_of(const Tile& tile, const Block& block, int64_t h) const { return h * head_rows(tile) + block.row; }
  template <class T, bool panels>
  void attend(const Tile& tile, int64_t split, const Tile& then, int64_t then_split, Partial out) const;
  F32x16 scales_of(const f16* const* granules, int64_t h, int64_t g, int64_t i) const {
    const int64_t offset = h * scale_stride + g * p.cache.block_size;
    return load_halves(granules[i / kGranule] + offset, granules[i / kGranule + 1] + offset);
  }
  // Queries that are few are bound by memory, and their products hide behind it.
  bool from_panels(const Tile& tile) const { return kPanels && p.cache.has_scales() && head_rows(tile) > kRows; }
#if defined(PYBATCH_ISA_AMX)
  // Bytes of the digits of a row of queries, and of a group of probabilities of a block.
  int64_t q_digit_bytes() const { return 3 * kStep * (p.cache.dtype == DType::i4 ? groups : steps_of(depth)); }
  int64_t p_digit_bytes() const { return steps_of(kPart<int8_t>) * step_bytes(kRows); }
  int64_t key_panel_bytes() const { return depth / kQuad * kQuadBytes; }
  void split_queries(const Tile& tile) const;
#endif
  template <class T>
  void score_panels(const Tile& tile, const Split<T>& at, const Block& block, Unpacked& unpacked) const;
  template <class T>
  void weigh_panels(const Tile& tile, const Split<T>& at, const Block& block, Unpacked& unpacked, Partial out) const;
  template <class T>
  void score(const Tile& tile, const Split<T>& at, const Block& block) const;
  template <class T, bool panels>
  void softmax(const Tile& tile, const Split<T>& at, const Block& block, int64_t h, Partial out) const;
  void mask_rows(float* logits, int64_t stride, const Block& block) const;
  template <class T, bool panels>
  void quantised_softmax(const Tile& tile, const Split<T>& at, const Block& block, int64_t h, Partial out) const;
  template <class T>
  void weigh_codes(const Tile& tile, const Split<T>& at, const Block& block, int64_t h, Partial out) const;
  template <class T>
  void weigh(const Tile& tile, const Split<T>& at, const Block& block, Partial out) const;
  template <class T>
  void fetch_scales(const Split<T>& at, const Block& block, int64_t h) const;
  template <int write, class Rows>
  void fetch_rows(const Rows& of, const Tile& tile, int64_t first, int64_t end) const;

  Workspace work{};
};

inline int64_t SplitAttention::lay_out(char* base) {
  int64_t used = 0;
  auto take = [&]<class T>(T*& buffer, int64_t count) {
    buffer = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
  };
  take(work.q, max_rows * padded_depth);
  take(work.score, max_rows * (p.cache.has_scales() ? kScoreStride<int8_t> : kScoreStride<float>));
  take(work.p, p.cache.dtype == DType::i4 ? groups * kRows * kScoreStride<i4x2> : 0);
  take(work.q_scale, max_rows);
  take(work.p_scale, max_rows * groups);
  take(work.keep, max_rows);
#if defined(PYBATCH_ISA_AMX)
  if (p.cache.has_scales()) {
    take(work.panels.q, max_rows * q_digit_bytes() + kTileBytes);
    take(work.panels.p, groups * p_digit_bytes() + kTileBytes);
    take(work.panels.keys, kAttentionSplit / kLanes * key_panel_bytes() + kTileBytes);
    take(work.panels.values, round_up(depth, kStep) / kLanes * kValuePanelBytes);
  }
#endif
  return used;
}

inline void SplitAttention::load_queries(const Tile& tile) const {
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
  if (from_panels(tile)) return split_queries(tile);
#endif
  for (int64_t row = 0; row < rows(tile); ++row) {
    float* q = work.q + row * padded_depth;
    const bool int8 = p.cache.dtype == DType::i8;
    work.q_scale[row] = int8 ? narrow_queries<int8_t>(q, padded_depth) : narrow_queries<i4x2>(q, padded_depth);
  }
}

// Prefetches the scales of a KV head and the part that follows.
template <class T>
PYBATCH_INLINE void SplitAttention::fetch_scales(const Split<T>& at, const Block& block, int64_t h) const {
  const int64_t next = block.first / kGranule + round_up(block.columns.end, kLanes) / kGranule;
  for (int64_t g = next; g < next + kPartGranules<T>; g += larger(p.cache.block_size / kGranule, 1)) {
    for (int64_t i = 0; i < scale_stride; i += 64 / static_cast<int64_t>(sizeof(f16))) {
      fetch<64>(at.k_scale[g] + h * scale_stride + i);
      fetch<64>(at.v_scale[g] + h * scale_stride + i);
    }
  }
}

// Prefetches the queries, or (write) the output, of a tile's tokens [first, end).
template <int write, class Rows>
PYBATCH_INLINE void SplitAttention::fetch_rows(const Rows& of, const Tile& tile, int64_t first, int64_t end) const {
  const int64_t size = size_of(of.dtype), bytes = tile.kv_heads * group * depth * size;
  for (int64_t token = tile.first + first; token < tile.first + smaller(end, tile.tokens); ++token) {
    const char* row = static_cast<const char*>(of.data) + (token * of.row_stride + tile.kv_head * group * depth) * size;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, write, 2);
  }
}

// Heads alternate over columns and tokens that are adjacent in memory.
template <class T>
void SplitAttention::score(const Tile& tile, const Split<T>& at, const Block& block) const {
  const int64_t ahead = block.row == 0 ? kAhead : 0;  // the first block brings the split into L2
  const auto& part = at.parts[block.first / kPart<T>];
  for (int64_t i = block.columns.begin, width; i < block.columns.end; i += width * kLanes) {
    width = smaller((block.columns.end - i) / kLanes, kColumns);
    const int64_t g = i / kGranule;
    for (int64_t h = block.head; h < block.head_end; ++h) {
      const Granules<T> keys = {at.k + block.first / kGranule + g, part.k + g + ahead, h * head_stride / kElements<T>};
      const int64_t row = row_of(tile, block, h);
      const float* q = work.q + row * padded_depth;
      float* out = scores_of<T>(block, h) + i;
      if constexpr (kElements<T> > 1) {
        auto scales = [&](int64_t group, int64_t column)
                          PYBATCH_INLINE_LAMBDA { return scales_of(at.k_scale, h, group, block.first + i + column); };
        score_rows(q, padded_depth, block.rows, keys, p.cache.block_size, width, depth, work.q_scale + row, scales, out,
                   kScoreStride<T>);
      } else {
        score_rows(q, padded_depth, block.rows, keys, p.cache.block_size, width, depth, out, kScoreStride<T>);
      }
    }
  }
}

// Turns a KV head's scores into probabilities, not yet divided by their sum. With a quantised cache they become words.
template <class T, bool panels>
void SplitAttention::softmax(const Tile& tile, const Split<T>& at, const Block& block, int64_t h, Partial out) const {
  if constexpr (sizeof(T) == 1) {
    if (block.row == 0) fetch_scales(at, block, h);
    quantised_softmax<T, panels>(tile, at, block, h, out);
  } else {
    const int64_t row = row_of(tile, block, h);
    float* scores = scores_of<T>(block, h);
    mask_rows(scores, kScoreStride<T>, block);
    with_count<kRows>(block.rows, [&]<int rows>(Count<rows>) {
      softmax_rows<rows>(scores, kScoreStride<T>, block.columns, block.ranges, out.max + row, out.sum + row);
    });
  }
}

// Caps and masks logits where that is asked for.
inline void SplitAttention::mask_rows(float* logits, int64_t stride, const Block& block) const {
  for (int64_t r = 0; r < block.rows; ++r, logits += stride) {
    if (p.soft_cap > 0) soft_cap(logits, block.columns, p.soft_cap * kLog2E);
    mask(logits, block.columns, block.ranges[r]);
  }
}

template <class T, bool panels>
void SplitAttention::quantised_softmax(const Tile& tile, const Split<T>& at, const Block& block, int64_t h,
                                       Partial out) const {
  constexpr int64_t kStride = kScoreStride<T>;
  const Range columns = block.columns;
  const int64_t row = row_of(tile, block, h);
  float *scores = scores_of<T>(block, h), *max = out.max + row, *keep = work.keep + row;
  auto scales = [&](const f16* const* of, int64_t g) PYBATCH_INLINE_LAMBDA {
    return [this, of, h, g, first = block.first](int64_t i)
               PYBATCH_INLINE_LAMBDA { return scales_of(of, h, g, first + i); };
  };
  auto logits = [&](int64_t i) PYBATCH_INLINE_LAMBDA {
    return [at = scores + i](int64_t r) PYBATCH_INLINE_LAMBDA { return load(at + r * kStride); };
  };
  // Logits of integer scores, which become them.
  auto scaled = [&, q_scale = work.q_scale + row, k_scale = scales(at.k_scale, 0)](int64_t i) PYBATCH_INLINE_LAMBDA {
    return [at = scores + i, q_scale, k_scale = k_scale(i)](int64_t r) PYBATCH_INLINE_LAMBDA {
      const F32x16 x = to_float(load_ints(at + r * kStride)) * (k_scale * broadcast(q_scale[r]));
      store(at + r * kStride, x);
      return x;
    };
  };
  // What is read next is fetched half here, half while values are weighed, so that memory is never idle.
  const T* const* next = at.parts[block.first / kPart<T>].v + kAhead;
  auto fetch_half = [&, bytes = kGranule * depth / kElements<T> / 2](int64_t i) PYBATCH_INLINE_LAMBDA {
    if (panels || block.row > 0) return;
    for (int64_t g = i / kGranule; g < (i + kLanes) / kGranule; ++g) {
      const T* piece = next[g] + h * head_stride / kElements<T>;
      for (int64_t at = 0; at < bytes; at += 64) fetch<64>(piece + at);
    }
  };
  const bool whole = block.ranges[block.rows - 1].begin <= columns.begin && columns.end <= block.ranges[0].end;
  with_count<kRows>(block.rows, [&]<int rows>(Count<rows>) {
    if (whole && p.soft_cap <= 0 && kElements<T> == 1) {
      add_maxima<rows>(columns, block.ranges, scaled, max, keep);
    } else {
      for (int64_t i = columns.begin; kElements<T> == 1 && i < columns.end; i += kLanes) {
        for (int64_t r = 0; r < rows; ++r) scaled(i)(r);
      }
      mask_rows(scores, kStride, block);
      add_maxima<rows>(columns, block.ranges, logits, max, keep);
    }
    auto add = [&](const auto& put) PYBATCH_INLINE_LAMBDA {
      auto add_seen = [&]<bool all>(std::bool_constant<all>) PYBATCH_INLINE_LAMBDA {
        add_probabilities<rows, all>(
            scores, kStride, columns, block.ranges, groups,
            [&](int64_t g) PYBATCH_INLINE_LAMBDA { return scales(at.v_scale, g); }, max, keep, out.sum + row,
            work.p_scale + row * groups, put, fetch_half);
      };
      whole ? add_seen(std::true_type{}) : add_seen(std::false_type{});
    };
    if constexpr (panels) {
#if defined(PYBATCH_ISA_AMX)
      for (int64_t g = 0; g < groups; ++g) zero_ends(work.panels.p + g * p_digit_bytes(), rows, columns);
      add([&](int64_t g, int r, int64_t i, I32x16 words) PYBATCH_INLINE_LAMBDA {
        store_digits(work.panels.p + g * p_digit_bytes(), rows, r, i, high_digits(words), low_digits(words));
      });
#endif
    } else {
      int16_t* to = kElements<T> > 1 ? work.p : reinterpret_cast<int16_t*>(scores);
      constexpr int64_t stride = kElements<T> > 1 ? kStride : 2 * kStride;
      add([&](int64_t g, int r, int64_t i, I32x16 words)
              PYBATCH_INLINE_LAMBDA { store_probabilities<T>(to + (g * rows + r) * stride + i, words); });
    }
  });
}

// Adds a KV head's values. Probabilities outside a row's range are zeros, and what they are multiplied by are integers.
template <class T>
void SplitAttention::weigh_codes(const Tile& tile, const Split<T>& at, const Block& block, int64_t h,
                                 Partial out) const {
  const T* const* values = at.parts[block.first / kPart<T>].v;
  const int64_t row = row_of(tile, block, h), begin = block.columns.begin, end = block.columns.end;
  const Granules<T> v = {values, values + (block.row == 0 ? kAhead : 0), h * head_stride / kElements<T>};
  const Rescale rescale = {work.keep + row, work.p_scale + row * groups, groups};
  float* acc = out.acc + row * padded_depth;
  if constexpr (kElements<T> > 1) {
    weigh_rows(work.p, kScoreStride<T>, block.rows, v, depth, begin, end, rescale, acc, padded_depth);
  } else {
    weigh_rows(scores_of<T>(block, h), kScoreStride<T>, block.rows, v, depth, begin, end, acc, padded_depth, &rescale);
  }
}

// Values outside a row's range are never multiplied, not even by zero: they may be NaN. What all rows of a block see is
// weighed together, the rest before and after it row by row.
template <class T>
void SplitAttention::weigh(const Tile& tile, const Split<T>& at, const Block& block, Partial out) const {
  constexpr int64_t kStride = kScoreStride<T>;
  const int64_t n = block.rows, ahead = block.row == 0 ? kAhead : 0;
  const Range *ranges = block.ranges, top = ranges[0], bottom = ranges[n - 1];
  const Range common = {bottom.begin, larger(bottom.begin, top.end)};
  const int64_t ragged = top.begin == bottom.begin && top.end == bottom.end ? 0 : n;  // rows to do one by one
  const int64_t step = tile.kv_heads > 1 ? kColumns * kLanes : kAttentionSplit;
  for (int64_t from = block.columns.begin; from < bottom.end; from += step) {
    for (int64_t h = block.head; h < block.head_end; ++h) {
      const Granules<T> values = {at.parts[0].v, at.parts[0].v + ahead, h * head_stride};
      const float* scores = scores_of<T>(block, h);
      float* acc = out.acc + row_of(tile, block, h) * padded_depth;
      auto weigh = [&](int64_t first, int64_t count, int64_t begin, int64_t end) {
        weigh_rows(scores + first * kStride, kStride, count, values, depth, larger(begin, from),
                   smaller(end, from + step), acc + first * padded_depth, padded_depth);
      };
      for (int64_t r = 0; r < ragged; ++r) weigh(r, 1, ranges[r].begin, smaller(ranges[r].end, common.begin));
      weigh(0, n, common.begin, common.end);
      for (int64_t r = 0; r < ragged; ++r) weigh(r, 1, common.end, ranges[r].end);
    }
  }
}

// One split of a tile; `then` is what is read after it.
template <class T, bool panels>
void SplitAttention::attend(const Tile& tile, int64_t split, const Tile& then, int64_t then_split, Partial out) const {
  const int64_t head_rows = this->head_rows(tile);
  const int64_t begin = range_of(tile, 0, split).begin, end = range_of(tile, head_rows - 1, split).end;
  if (begin >= end) {
    for (int64_t row = 0; row < rows(tile); ++row) out.sum[row] = 0;
    return;
  }
  Split<T> at;
  locate(*this, tile, split, {begin / kLanes, (end + kLanes - 1) / kLanes}, then, then_split, at);
  for (int64_t row = 0; row < rows(tile); ++row) {
    out.max[row] = -__builtin_inff();
    out.sum[row] = 0;
    for (int64_t i = 0; i < padded_depth; i += kLanes) store(out.acc + row * padded_depth + i, zeros());
  }
  Block block;
  const int64_t heads = panels ? 1 : tile.kv_heads;
  for (block.head = 0; block.head < tile.kv_heads; block.head = block.head_end) {
    block.head_end = block.head + heads;
    [[maybe_unused]] Unpacked unpacked;
    for (block.row = 0; block.row < head_rows; block.row += block.rows) {
      block.rows = rows_at_once(head_rows - block.row);
      Range ranges[kRows];
      for (int64_t r = 0; r < block.rows; ++r) ranges[r] = range_of(tile, block.row + r, split);
      const Range columns = {ranges[0].begin / kLanes * kLanes, round_up(ranges[block.rows - 1].end, kLanes)};
      if (block.head == 0) {  // a few at a time: L1 has few outstanding misses
        fetch_rows<0>(p.q, then, block.row / group, (block.row + block.rows) / group);
        fetch_rows<1>(p.out, tile, block.row / group, (block.row + block.rows) / group);
      }
      for (block.first = columns.begin / kPart<T> * kPart<T>; block.first < columns.end; block.first += kPart<T>) {
        auto in_part = [&](Range range) {
          auto clamped = [&](int64_t i) { return smaller(larger(i - block.first, 0), kPart<T>); };
          return Range{clamped(range.begin), clamped(range.end)};
        };
        for (int64_t r = 0; r < block.rows; ++r) block.ranges[r] = in_part(ranges[r]);
        block.columns = in_part(columns);
        if constexpr (panels) {
          score_panels(tile, at, block, unpacked);
          softmax<T, true>(tile, at, block, block.head, out);
          weigh_panels(tile, at, block, unpacked, out);
        } else {
          score(tile, at, block);
          for (int64_t h = block.head; h < block.head_end; ++h) {
            softmax<T, false>(tile, at, block, h, out);
            if constexpr (sizeof(T) == 1) weigh_codes(tile, at, block, h, out);
          }
          if constexpr (sizeof(T) > 1) weigh(tile, at, block, out);
        }
      }
    }
  }
}

inline void SplitAttention::attend(const Tile& tile, int64_t split, const Tile& then, int64_t then_split,
                                   Partial out) const {
  auto of_type = [&]<class T>(T*) {
    if constexpr (kPanels && sizeof(T) == 1) {
      if (from_panels(tile)) return attend<T, true>(tile, split, then, then_split, out);
    }
    attend<T, false>(tile, split, then, then_split, out);
  };
  if (p.cache.dtype == DType::i8) return of_type(static_cast<int8_t*>(nullptr));
  if (p.cache.dtype == DType::i4) return of_type(static_cast<i4x2*>(nullptr));
  with_float_type(p.cache.dtype, of_type);
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

// Where the tokens of a split lie in the blocks of the cache, in the order in which they are read.
#pragma once

#include "cpu/attention_call.h"
#include "cpu/attention_tile.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kSplitGranules = kAttentionSplit / kGranule;
constexpr int64_t kColumnGranules = kLanes / kGranule;

// Where the granules of a split are: the first element of the tile's first KV head.
template <class T>
struct Split {
  const T* k[kSplitGranules];
  // Behind those of the split the first of what is read after it.
  const f16* k_scale[kSplitGranules + kPartGranules<T>];
  const f16* v_scale[kSplitGranules + kPartGranules<T>];
  // Of each part, where its first granule is, or would be, among the pieces.
  struct Part {
    const T* const* k;
    const T* const* v;
  } parts[kAttentionSplit / kPart<T>];
  // The same as pieces of memory in reading order: keys and values of each part, and what is read after this split.
  const T* pieces[kPartGranules<T> + 2 * kSplitGranules + kAhead];
};

// Finds the tokens of a split; `then` and `then_split` are what is read after it. columns: of sixteen tokens. The last
// may end past the last token; it then repeats the last granule.
template <class T>
void locate(const AttentionCall& call, const Tile& tile, int64_t split, Range columns, const Tile& then,
            int64_t then_split, Split<T>& out) {
  const PagedAttentionParams& p = call.p;
  const KvCache& cache = p.cache;
  struct Place {
    int64_t block, offset;
  };
  auto place_of = [&](const Tile& tile, int64_t split, int64_t granule) PYBATCH_INLINE_LAMBDA {
    const int64_t wanted = split * kAttentionSplit + granule * kGranule;
    const int64_t token = smaller(wanted, p.seq_lens[tile.sequence] - 1);
    return Place{p.block_tables[tile.sequence * p.block_table_stride + (token >> call.block_shift)],
                 token & (cache.block_size - 1) & -kGranule};
  };
  auto key = [&](const Tile& tile, Place at) {
    return static_cast<const T*>(cache.k) + at.block * cache.k_block_stride +
           tile.kv_head * call.head_stride / kElements<T>;
  };
  [[maybe_unused]] auto scales = [&](const Tile& tile, Place at, int64_t g) {
    const int64_t offset = tile.kv_head * call.scale_stride + at.offset;
    out.k_scale[g] = static_cast<const f16*>(cache.k_scale) + at.block * cache.k_scale_block_stride + offset;
    out.v_scale[g] = static_cast<const f16*>(cache.v_scale) + at.block * cache.v_scale_block_stride + offset;
  };
  const int64_t end = columns.end * kColumnGranules;
  const T** piece = out.pieces + kPartGranules<T>;
  const T *keys = nullptr, *values = nullptr;  // of the block that a granule is in
  for (int64_t from = columns.begin * kColumnGranules, to; from < end; from = to) {
    const int64_t part = from / kPartGranules<T>, skipped = from % kPartGranules<T>;
    to = smaller((part + 1) * kPartGranules<T>, end);
    out.parts[part] = {piece - skipped, piece + (to - from) - skipped};
    for (int64_t g = from; g < to; ++g, ++piece) {
      const Place at = place_of(tile, split, g);
      if (!keys || at.offset == 0) {
        keys = key(tile, at);
        values = static_cast<const T*>(cache.v) + at.block * cache.v_block_stride +
                 tile.kv_head * call.head_stride / kElements<T>;
      }
      out.k[g] = keys + at.offset * kKeyRun<T>;
      piece[0] = keys + at.offset * call.depth / kElements<T>;
      piece[to - from] = values + at.offset * call.depth / kElements<T>;
      if constexpr (sizeof(T) == 1) scales(tile, at, g);
    }
    piece += to - from;
  }
  const int64_t then_first = call.range_of(then, 0, then_split).begin / kGranule;
  for (int64_t i = 0; i < kAhead; ++i) {
    const Place at = place_of(then, then_split, then_first + i);
    *piece++ = key(then, at) + at.offset * call.depth / kElements<T>;
  }
  if constexpr (sizeof(T) == 1) {
    for (int64_t i = 0; i < kPartGranules<T>; ++i) scales(then, place_of(then, then_split, then_first + i), end + i);
  }
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

#include "cpu/attention_rows.h"
#include "cpu/attention_softmax.h"
#include "cpu/kv_quantise.h"
#include "cpu/vec.h"
#include "pybatch/kv_pruning.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileRows = 24;  // query rows that share every key loaded
constexpr int64_t kSpan = 256;     // tokens whose keys are in fp32 at once

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// One KV head of one sequence: row r is query r / group of those that count, head kv_head * group + r % group.
struct Item {
  const AttentionMassParams& p;
  int64_t sequence, kv_head, group;
  int64_t first_query, queries;  // the rows of q that count
  int64_t position;              // of the first of them in the cache

  Item(const AttentionMassParams& p, int64_t sequence, int64_t kv_head)
      : p(p), sequence(sequence), kv_head(kv_head), group(p.heads / p.cache.kv_heads) {
    first_query = p.first[sequence];
    queries = p.query_start[sequence + 1] - first_query;
    position = p.seq_lens[sequence] - queries;
  }

  float* mass(int64_t row) const { return p.mass + row * p.mass_row_stride + kv_head * p.mass_capacity; }
};

// Row r of q, scaled for softmax in base two.
void load_query(const Item& item, int64_t r, float* to) {
  const AttentionMassParams& p = item.p;
  const int64_t depth = p.cache.head_dim, head = item.kv_head * item.group + r % item.group;
  with_float_type(p.q.dtype, [&]<class T>(T*) {
    const T* from =
        static_cast<const T*>(p.q.data) + (item.first_query + r / item.group) * p.q.row_stride + head * depth;
    const F32x16 scale = broadcast(p.scale * kLog2E);
    for (int64_t i = 0; i < depth; i += kLanes) store_first(to + i, load_first(from + i, depth - i) * scale, depth - i);
  });
}

// Keys of the tokens from `begin`, a multiple of kSpan, to `end`, as [depth][kSpan].
template <class T>
void load_keys(const Item& item, int64_t begin, int64_t end, float* to) {
  const KvCache& c = item.p.cache;
  const int32_t* table = item.p.block_tables + item.sequence * item.p.block_table_stride;
  const int64_t plane = item.kv_head * c.head_dim * c.block_size;
  const int64_t at_once = smaller(c.block_size, kLanes);
  for (int64_t token = begin; token < end; token += at_once) {
    const int64_t block = table[token / c.block_size], offset = token % c.block_size;
    const T* key = static_cast<const T*>(c.k) + block * c.k_block_stride + plane + offset;
    F32x16 scale = broadcast(1.0f);
    if constexpr (sizeof(T) == 1) {
      const f16* scales = static_cast<const f16*>(c.k_scale) + block * c.k_scale_block_stride;
      scale = load_first(scales + item.kv_head * c.block_size + offset, at_once);
    }
    for (int64_t d = 0; d < c.head_dim; ++d) {
      F32x16 x = load_first(key + d * c.block_size, at_once);
      if constexpr (sizeof(T) == 1) x = x * scale;
      store_first(to + d * kSpan + token - begin, x, at_once);
    }
  }
}

void load_int4_keys(const Item& item, int64_t begin, int64_t end, float* to) {
  const KvCache& c = item.p.cache;
  const int32_t* table = item.p.block_tables + item.sequence * item.p.block_table_stride;
  const int64_t at_once = smaller(c.block_size, kLanes), groups = c.groups();
  for (int64_t token = begin; token < end; token += at_once, to += at_once) {
    const int64_t block = table[token / c.block_size], offset = token % c.block_size;
    const auto* words = reinterpret_cast<const uint32_t*>(static_cast<const uint8_t*>(c.k) + block * c.k_block_stride) +
                        item.kv_head * c.head_dim / 8 * c.block_size + offset;
    const f16* scales = static_cast<const f16*>(c.k_scale) + block * c.k_scale_block_stride +
                        item.kv_head * groups * c.block_size + offset;
    for (int64_t d = 0; d < c.head_dim; d += 8) {
      const F32x16 scale = load_first(scales + d / kInt4Group * c.block_size, at_once) * broadcast(0x1p-4f);
      uint32_t eight[kLanes] = {};
      std::memcpy(eight, words + d / 8 * c.block_size, static_cast<size_t>(at_once) * sizeof(uint32_t));
      const I32x16 word = load_ints(eight), top = broadcast_int(INT32_MIN >> 3);
      for_each_count<8>([&]<int i>(Count<i>) PYBATCH_INLINE_LAMBDA {  // codes times 16
        const F32x16 x = to_float(signed_top_byte((word << (28 - key_shift(i))) & top)) * scale;
        store_first(to + (d + i) * kSpan, x, at_once);
      });
    }
  }
}

void load_keys(const Item& item, int64_t begin, int64_t end, float* to) {
  if (item.p.cache.dtype == DType::i4) return load_int4_keys(item, begin, end, to);
  if (item.p.cache.dtype == DType::i8) return load_keys<int8_t>(item, begin, end, to);
  with_float_type(item.p.cache.dtype, [&]<class T>(T*) { load_keys<T>(item, begin, end, to); });
}

// Scores of `rows` rows of q, [rows][depth], against the tokens before `end`, into [rows][stride].
void score(const Item& item, const float* q, int64_t rows, int64_t end, float* keys, float* scores, int64_t stride) {
  const int64_t depth = item.p.cache.head_dim;
  const float* granules[kSpan / kGranule];
  for (int64_t g = 0; g < kSpan / kGranule; ++g) granules[g] = keys + g * kGranule;
  for (int64_t begin = 0; begin < end; begin += kSpan) {
    const int64_t columns = round_up(smaller(end - begin, kSpan), kLanes);
    load_keys(item, begin, smaller(end, begin + kSpan), keys);
    for (int64_t row = 0, count; row < rows; row += count) {
      count = rows_at_once(rows - row);
      for (int64_t i = 0, width; i < columns; i += width * kLanes) {
        width = smaller((columns - i) / kLanes, kColumns);
        const float* const* at = granules + i / kGranule;
        score_rows(q + row * depth, depth, count, Granules<float>{at, at, 0}, kSpan, width, depth,
                   scores + row * stride + begin + i, stride);
      }
    }
  }
}

void add_mass(const Item& item) {
  const AttentionMassParams& p = item.p;
  const int64_t length = p.seq_lens[item.sequence], depth = p.cache.head_dim, stride = round_up(length, kLanes);
  auto* q = static_cast<float*>(
      thread_scratch(0, (kTileRows * (depth + kLanes + stride) + depth * kSpan) * static_cast<int64_t>(sizeof(float))));
  float *keys = q + kTileRows * (depth + kLanes), *scores = keys + depth * kSpan;

  float* mass = item.mass(p.rows[item.sequence]);
  const int64_t queries = p.query_start[item.sequence + 1] - p.query_start[item.sequence];
  const int64_t known = p.sources[item.sequence] < 0 ? 0 : length - queries;
  if (known > 0) std::memcpy(mass, item.mass(p.sources[item.sequence]), static_cast<size_t>(known) * sizeof(float));
  std::memset(mass + known, 0, static_cast<size_t>(stride - known) * sizeof(float));

  const int64_t all_rows = item.queries * item.group;
  for (int64_t first = 0, rows; first < all_rows; first += rows) {
    rows = smaller(all_rows - first, kTileRows);
    const int64_t end = item.position + (first + rows - 1) / item.group + 1;  // of what the last row sees
    const Range columns = {0, round_up(end, kLanes)};
    for (int64_t r = 0; r < rows; ++r) load_query(item, first + r, q + r * depth);
    score(item, q, rows, end, keys, scores, stride);
    F32x16 factors[kTileRows];
    for (int64_t r = 0; r < rows; ++r) {
      const Range range = {0, item.position + (first + r) / item.group + 1};
      float* of_row = scores + r * stride;
      float largest, sum;
      mask(of_row, columns, range);
      softmax_rows<1>(of_row, stride, columns, &range, &largest, &sum);
      factors[r] = broadcast(1.0f / sum);
    }
    for (int64_t i = 0; i < columns.end; i += kLanes) {
      F32x16 total = load(mass + i);
      for (int64_t r = 0; r < rows; ++r) total = fma(load(scores + r * stride + i), factors[r], total);
      store(mass + i, total);
    }
  }
}

}  // namespace

void attention_mass(const AttentionMassParams& p) {
  const int64_t heads = p.cache.kv_heads;
  int64_t next = 0;
  parallel_for(smaller(p.sequences * heads, num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < p.sequences * heads;) {
      const Item item(p, i / heads, i % heads);
      if (item.queries > 0) add_mass(item);
    }
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

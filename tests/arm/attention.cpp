// Attention over paged caches, and the mass of attention.
#include "cache.h"

namespace check {
namespace {

constexpr int64_t kHeads = 6, kKvHeads = 2, kGroup = kHeads / kKvHeads;

struct Options {
  const char* name;
  int64_t window;
  float soft_cap;
  bool sinks;
};

// Three sequences: a prefill, a decode, and a decode past a split of 512 tokens.
struct Batch {
  Batch(CacheShape shape, DType dtype, Random& random)
      : depth(shape.depth),
        cache(shape, random),
        q(dtype, kTokens * kHeads * depth, random),
        sinks(DType::f32, kHeads, random),
        max_blocks(528 / shape.block_size) {
    for (int32_t s = 0; s < 3; ++s) {
      for (int64_t i = 0; i < max_blocks; ++i) tables.push_back(static_cast<int32_t>((i * 5 + s) % shape.blocks));
    }
    for (int64_t i = 0; i < shape.blocks * kKvHeads * shape.block_size * depth; ++i) {
      const int64_t d = i % depth, offset = i / depth % shape.block_size;
      const int64_t head = i / depth / shape.block_size % kKvHeads, block = i / depth / shape.block_size / kKvHeads;
      keys.push_back(cache.key(block, head, offset, d));
      values.push_back(cache.value(block, head, offset, d));
    }
  }

  static constexpr int64_t kTokens = 9;
  static constexpr int32_t kStart[] = {0, 7, 8, 9}, kLengths[] = {37, 90, 523};
  int64_t depth;
  Cache cache;
  Array q, sinks;
  int64_t max_blocks;
  std::vector<int32_t> tables;
  std::vector<double> keys, values;  // [block][KV head][offset][element]

  static int64_t sequence_of(int64_t row) { return row < 7 ? 0 : row - 6; }
  static int64_t position_of(int64_t row) {
    const int64_t s = sequence_of(row);
    return kLengths[s] - kStart[s + 1] + row;
  }
  // Where in keys and values a token's head begins.
  size_t place_of(int64_t s, int64_t token, int64_t head) const {
    const int64_t size = cache.shape.block_size;
    const int64_t block = tables[static_cast<size_t>(s * max_blocks + token / size)];
    return static_cast<size_t>(((block * kKvHeads + head / kGroup) * size + token % size) * depth);
  }

  // The softmax of a row and head over tokens 0 to its position.
  std::vector<double> probabilities(int64_t row, int64_t head, const Options& o) const {
    const int64_t s = sequence_of(row), position = position_of(row);
    std::vector<double> query;
    for (int64_t d = 0; d < depth; ++d) query.push_back(q[(row * kHeads + head) * depth + d]);
    std::vector<double> p(static_cast<size_t>(position + 1));
    double most = o.sinks ? sinks[head] : -INFINITY, sum = 0;
    const int64_t begin = o.window > 0 ? std::max<int64_t>(position + 1 - o.window, 0) : 0;
    for (int64_t i = begin; i <= position; ++i) {
      double score = 0;
      const size_t at = place_of(s, i, head);
      for (size_t d = 0; d < query.size(); ++d) score += query[d] * keys[at + d];
      score *= static_cast<double>(scale());
      if (o.soft_cap > 0) score = static_cast<double>(o.soft_cap) * std::tanh(score / static_cast<double>(o.soft_cap));
      p[static_cast<size_t>(i)] = score;
      most = std::max(most, score);
    }
    if (o.sinks) sum = std::exp(sinks[head] - most);
    for (int64_t i = 0; i <= position; ++i) {
      double& x = p[static_cast<size_t>(i)];
      x = i < begin ? 0 : std::exp(x - most);
      sum += x;
    }
    for (double& x : p) x /= sum;
    return p;
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(depth)); }
};

void check_paged_attention(Batch& batch, const Options& o) {
  const int64_t depth = batch.depth, width = kHeads * depth;
  const DType dtype = batch.q.dtype, type = batch.cache.shape.dtype;
  auto run = [&](int64_t first, int64_t count, Array& out) {
    const bool whole = count == Batch::kTokens;
    const int64_t s = whole ? 0 : Batch::sequence_of(first);
    const int32_t alone[] = {0, 1}, length = static_cast<int32_t>(Batch::position_of(first) + 1);
    PagedAttentionParams p{};
    p.q = {batch.q.data() + first * width * size_of(dtype), width, dtype};
    p.out = {out.data(), width, dtype};
    p.cache = batch.cache.params();
    p.block_tables = batch.tables.data() + s * batch.max_blocks;
    p.block_table_stride = batch.max_blocks;
    p.query_start = whole ? Batch::kStart : alone;
    p.seq_lens = whole ? Batch::kLengths : &length;
    p.sinks = o.sinks ? batch.sinks.as<float>() : nullptr;
    p.scale = batch.scale();
    p.soft_cap = o.soft_cap;
    p.window = o.window;
    p.tokens = count;
    p.sequences = whole ? 3 : 1;
    p.heads = kHeads;
    cpu::kernels().paged_attention(p);
  };
  std::vector<double> wanted, most;
  for (int64_t row = 0; against_float64 && row < Batch::kTokens; ++row) {
    const int64_t s = Batch::sequence_of(row);
    for (int64_t h = 0; h < kHeads; ++h) {
      const std::vector<double> p = batch.probabilities(row, h, o);
      for (int64_t d = 0; d < depth; ++d) {
        double sum = 0, largest = 0;
        for (size_t i = 0; i < p.size(); ++i) {
          const double v = batch.values[batch.place_of(s, static_cast<int64_t>(i), h) + static_cast<size_t>(d)];
          sum += p[i] * v;
          largest = std::max(largest, std::fabs(v));
        }
        wanted.push_back(sum);
        most.push_back(largest);
      }
    }
  }
  // Queries and probabilities become words of 16 bits where the cache has codes.
  const double arithmetic = batch.cache.quantised() ? 1e-3 : 1e-5;
  check_rows(std::string("paged_attention ") + name_of(dtype) + " over " + name_of(type) + " " + std::to_string(depth) +
                 " " + o.name,
             Batch::kTokens, width, dtype, run, [&](int64_t r, int64_t c) -> Near {
               const auto i = static_cast<size_t>(r * width + c);
               return {wanted[i], most[i] * arithmetic + std::fabs(wanted[i]) * rounding(dtype)};
             });
}

void check_attention_mass(Batch& batch) {
  constexpr int64_t kCapacity = 544;
  const int64_t width = kKvHeads * kCapacity, depth = batch.depth;
  const DType dtype = batch.q.dtype;
  auto run = [&](int64_t first, int64_t count, Array& out) {
    const int32_t sources[] = {-1, -1, -1}, rows[] = {0, 1, 2};
    AttentionMassParams p{};
    p.q = {batch.q.data(), kHeads * depth, dtype};
    p.cache = batch.cache.params();
    p.block_tables = batch.tables.data() + first * batch.max_blocks;
    p.block_table_stride = batch.max_blocks;
    p.query_start = Batch::kStart + first;
    p.seq_lens = Batch::kLengths + first;
    p.first = Batch::kStart + first;
    p.sources = sources;
    p.rows = rows;
    p.mass = out.as<float>();
    p.mass_row_stride = width;
    p.mass_capacity = kCapacity;
    p.scale = batch.scale();
    p.tokens = Batch::kTokens;
    p.sequences = count;
    p.heads = kHeads;
    cpu::kernels().attention_mass(p);
  };
  std::vector<double> wanted(static_cast<size_t>(3 * width));
  for (int64_t row = 0; against_float64 && row < Batch::kTokens; ++row) {
    for (int64_t h = 0; h < kHeads; ++h) {
      const std::vector<double> p = batch.probabilities(row, h, {"", 0, 0.0f, false});
      const auto first = static_cast<size_t>((Batch::sequence_of(row) * kKvHeads + h / kGroup) * kCapacity);
      for (size_t i = 0; i < p.size(); ++i) wanted[first + i] += p[i];
    }
  }
  check_rows(std::string("attention_mass over ") + name_of(batch.cache.shape.dtype) + " " + std::to_string(depth), 3,
             width, DType::f32, run,
             [&](int64_t r, int64_t c) -> Near { return {wanted[static_cast<size_t>(r * width + c)], 2e-5}; });
}

}  // namespace

void check_attention() {
  Random random(4);
  constexpr Options kOptions[] = {{"plain", 0, 0.0f, false}, {"window, cap and sinks", 50, 4.0f, true}};
  for (DType type : kCacheTypes) {
    for (const CacheShape& shape : {CacheShape{type, 33, kKvHeads, 16, 64}, CacheShape{type, 66, kKvHeads, 8, 40}}) {
      Batch batch(shape, DType::f32, random);
      for (const Options& o : kOptions) check_paged_attention(batch, o);
      check_attention_mass(batch);
    }
    Batch narrow({type, 33, kKvHeads, 16, 64}, DType::bf16, random);
    check_paged_attention(narrow, kOptions[0]);
  }
}

}  // namespace check

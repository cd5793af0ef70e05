// The ops of latent attention, which run on the CPU only.
#pragma once

#include "pybatch/latent_attention.h"
#include "torch_ops/checks.h"
#include "torch_ops/values.h"

namespace pybatch {

template <class Backend>
struct LatentOps : Checks<Backend> {
  using Base = Checks<Backend>;
  using Base::check, Base::expect_present, Base::input, Base::output, Base::vector_like;

  static LatentCache latent_cache(const Tensor& t) {
    expect_present(t, "cache");
    EXPECT(t.dim() == 3, "cache: expected 3 dimensions, got shape ", shape_of(t));
    LatentCache cache{t.data_ptr(), t.stride(0), t.size(0), t.size(1), t.size(2), float_type(t, "cache")};
    const int64_t block = cache.block_size;
    EXPECT(block == 8 || block == 16 || block == 32 || block == 64,
           "cache: expected a block size of 8, 16, 32 or 64, got ", block);
    EXPECT(cache.width > 0 && cache.width % kLatentStep == 0 && cache.width <= kMaxLatentWidth,
           "cache: expected a width that is a multiple of ", kLatentStep, " up to ", kMaxLatentWidth, ", got ",
           cache.width);
    EXPECT(t.stride(2) == 1 && t.stride(1) == cache.width, "cache: expected contiguous blocks");
    EXPECT(cache.num_blocks <= 1 || cache.block_stride >= block * cache.width,
           "cache: expected blocks that do not overlap");
    return cache;
  }

  static void latent_write(const Tensor& q, const Tensor& kv, const Tensor& norm, double norm_eps,
                           const Tensor& positions, const Tensor& slots, const Tensor& rotary, bool interleaved,
                           Tensor cache, Tensor out) {
    typename Backend::Scope scope(q);
    LatentWriteParams p{};
    p.cache = latent_cache(cache);
    p.out = output(out, "out", kAny, kAny);
    p.tokens = out.size(0);
    EXPECT(out.size(1) > 0 && out.size(1) % p.cache.width == 0,
           "out: expected a width that is a multiple of the cache's ", p.cache.width, ", got ", out.size(1));
    p.heads = out.size(1) / p.cache.width;
    p.q = input(q, "q", p.tokens, kAny);
    expect_same_type(p.q.dtype, "q", p.out.dtype, "out");
    check(rotary, "rotary", ScalarType::Float, {kAny, kAny});
    p.rotary_dim = rotary.size(1);
    p.head_dim = q.size(1) / p.heads;
    EXPECT(q.size(1) % p.heads == 0 && p.head_dim >= p.rotary_dim, "q: expected ", p.heads,
           " heads (as out has) of at least ", p.rotary_dim, " elements (as rotary has), got a width of ", q.size(1));
    EXPECT(p.rotary_dim % 2 == 0, "rotary: expected an even width, got ", p.rotary_dim);
    check(norm, "norm", q.scalar_type(), {kAny});
    p.latent = norm.size(0);
    EXPECT(p.latent > 0 && p.latent + p.rotary_dim <= p.cache.width, "norm: expected at most ",
           p.cache.width - p.rotary_dim, " elements (the cache's width less rotary's), got ", p.latent);
    p.kv = input(kv, "kv", p.tokens, p.latent + p.rotary_dim);
    expect_same_type(p.kv.dtype, "kv", p.q.dtype, "q");
    p.norm = norm.data_ptr();
    p.norm_eps = float32(norm_eps, "norm_eps");
    check(positions, "positions", ScalarType::Long, {p.tokens});
    check(slots, "slots", ScalarType::Long, {p.tokens});
    p.positions = pointer<int64_t>(positions);
    p.slots = pointer<int64_t>(slots);
    p.rotary = pointer<float>(rotary);
    p.interleaved = interleaved;
    Backend::verify(Ids{"positions", p.positions, p.tokens, rotary.size(0)}, {p.positions});
    Backend::verify(Slots{p.slots, p.tokens, p.cache.num_blocks * p.cache.block_size}, {p.slots});
    Backend::writes(cache);
    if (p.tokens > 0) Backend::latent_write(p);
  }

  static void latent_attention(const Tensor& q, const Tensor& cache, const Tensor& block_tables,
                               const Tensor& query_start, const Tensor& seq_lens, double scale, Tensor out) {
    typename Backend::Scope scope(q);
    LatentParams p{};
    p.cache = latent_cache(cache);
    p.q = input(q, "q", kAny, kAny);
    p.tokens = q.size(0);
    EXPECT(q.size(1) > 0 && q.size(1) % p.cache.width == 0, "q: expected a width that is a multiple of the cache's ",
           p.cache.width, ", got ", q.size(1));
    p.heads = q.size(1) / p.cache.width;
    p.out = output(out, "out", p.tokens, kAny);
    expect_same_type(p.out.dtype, "out", p.q.dtype, "q");
    p.latent = out.size(1) / p.heads;
    EXPECT(p.latent > 0 && out.size(1) % p.heads == 0 && p.latent <= p.cache.width, "out: expected ", p.heads,
           " heads (as q has) of at most ", p.cache.width, " elements, got a width of ", out.size(1));
    check(seq_lens, "seq_lens", ScalarType::Int, {kAny});
    p.sequences = seq_lens.size(0);
    check(query_start, "query_start", ScalarType::Int, {p.sequences + 1});
    check(block_tables, "block_tables", ScalarType::Int, {p.sequences, kAny});
    p.block_tables = pointer<int32_t>(block_tables);
    p.block_table_stride = block_tables.size(1);
    p.query_start = pointer<int32_t>(query_start);
    p.seq_lens = pointer<int32_t>(seq_lens);
    Backend::verify(AttentionBatch{p.block_tables, p.query_start, p.seq_lens, p.block_table_stride, p.sequences,
                                   p.tokens, p.cache.block_size, p.cache.num_blocks},
                    {p.block_tables, p.query_start, p.seq_lens});
    p.scale = float32(scale, "scale");
    if (p.tokens > 0) Backend::latent_attention(p);
  }
};

}  // namespace pybatch

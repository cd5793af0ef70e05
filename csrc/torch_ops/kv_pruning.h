// The ops that prune the paged KV cache.
#pragma once

#include "pybatch/kv_pruning.h"
#include "torch_ops/kv.h"

namespace pybatch {

template <class Backend>
struct KvPruningOps : KvOps<Backend> {
  using Base = KvOps<Backend>;
  using Base::check, Base::expect_present, Base::input, Base::kv_cache;

  static void rotate_keys(Tensor k_cache, const Tensor& v_cache, OptionalTensor k_scale, const OptionalTensor& v_scale,
                          const Tensor& blocks, const Tensor& rotary, const OptionalTensor& key_offset) {
    typename Backend::Scope scope(k_cache);
    RotateKeysParams p{};
    p.cache = kv_cache(k_cache, v_cache, k_scale, v_scale);
    check(blocks, "blocks", ScalarType::Long, {kAny});
    p.count = blocks.size(0);
    check(rotary, "rotary", ScalarType::Float, {p.count, kAny});
    p.rotary_dim = rotary.size(1);
    EXPECT(p.rotary_dim % 2 == 0 && p.rotary_dim <= p.cache.head_dim,
           "rotary: expected an even width of at most the head dimension ", p.cache.head_dim, ", got ", p.rotary_dim);
    p.blocks = pointer<int64_t>(blocks);
    p.rotary = pointer<float>(rotary);
    p.key_offset = Base::key_vectors(key_offset, "key_offset", p.cache);
    Backend::verify(Blocks<int64_t>{"blocks", p.blocks, p.count, p.cache.num_blocks, true}, {p.blocks});
    Backend::writes(k_cache);
    if (k_scale) Backend::writes(*k_scale);
    if (p.count > 0) Backend::rotate_keys(p);
  }

  static void gather_kv(Tensor k_cache, Tensor v_cache, OptionalTensor k_scale, OptionalTensor v_scale,
                        const Tensor& source, const Tensor& indices, const Tensor& destination) {
    typename Backend::Scope scope(k_cache);
    GatherKvParams p{};
    p.cache = kv_cache(k_cache, v_cache, k_scale, v_scale);
    check(source, "source", ScalarType::Int, {kAny});
    check(indices, "indices", ScalarType::Int, {p.cache.kv_heads, kAny});
    p.kept = indices.size(1);
    check(destination, "destination", ScalarType::Int, {(p.kept + p.cache.block_size - 1) / p.cache.block_size});
    p.source = pointer<int32_t>(source);
    p.indices = pointer<int32_t>(indices);
    p.destination = pointer<int32_t>(destination);
    Backend::verify(Gathering{p.source, p.destination, p.indices, source.size(0), destination.size(0), indices.numel(),
                              p.kept, p.cache.num_blocks, p.cache.block_size},
                    {p.source, p.destination, p.indices});
    for (const Tensor& t : {k_cache, v_cache}) Backend::writes(t);
    for (const OptionalTensor& t : {k_scale, v_scale}) {
      if (t) Backend::writes(*t);
    }
    if (p.kept > 0) Backend::gather_kv(p);
  }

  static void attention_mass(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                             const OptionalTensor& k_scale, const OptionalTensor& v_scale, const Tensor& block_tables,
                             const Tensor& query_start, const Tensor& seq_lens, double scale, const Tensor& first,
                             const Tensor& sources, const Tensor& rows, Tensor mass) {
    typename Backend::Scope scope(q);
    AttentionMassParams p{};
    p.cache = kv_cache(k_cache, v_cache, k_scale, v_scale);
    const int64_t width = p.cache.head_dim * p.cache.kv_heads;
    p.q = input(q, "q", kAny, kAny);
    p.tokens = q.size(0);
    EXPECT(q.size(1) > 0 && q.size(1) % width == 0,
           "q: expected a width that is a multiple of kv_heads * head_dim = ", width, ", got ", q.size(1));
    p.heads = q.size(1) / p.cache.head_dim;
    check(seq_lens, "seq_lens", ScalarType::Int, {kAny});
    p.sequences = seq_lens.size(0);
    check(query_start, "query_start", ScalarType::Int, {p.sequences + 1});
    check(block_tables, "block_tables", ScalarType::Int, {p.sequences, kAny});
    check(first, "first", ScalarType::Int, {p.sequences});
    check(sources, "sources", ScalarType::Int, {p.sequences});
    check(rows, "rows", ScalarType::Int, {p.sequences});
    expect_present(mass, "mass");
    EXPECT(mass.scalar_type() == ScalarType::Float, "mass: expected float32, got ", name_of(mass.scalar_type()));
    EXPECT(mass.dim() == 3 && mass.size(1) == p.cache.kv_heads && mass.size(2) % 16 == 0, "mass: expected shape [*, ",
           p.cache.kv_heads, ", a multiple of 16], got ", shape_of(mass));
    p.mass_capacity = mass.size(2);
    const int64_t row = p.cache.kv_heads * p.mass_capacity;
    EXPECT(mass.numel() == 0 || (mass.stride(2) == 1 && (mass.size(1) == 1 || mass.stride(1) == p.mass_capacity)),
           "mass: expected contiguous rows");
    EXPECT(mass.size(0) <= 1 || mass.stride(0) >= row, "mass: expected rows that do not overlap");
    p.mass_row_stride = mass.stride(0);
    p.block_tables = pointer<int32_t>(block_tables);
    p.block_table_stride = block_tables.size(1);
    p.query_start = pointer<int32_t>(query_start);
    p.seq_lens = pointer<int32_t>(seq_lens);
    p.first = pointer<int32_t>(first);
    p.sources = pointer<int32_t>(sources);
    p.rows = pointer<int32_t>(rows);
    Backend::verify(AttentionBatch{p.block_tables, p.query_start, p.seq_lens, p.block_table_stride, p.sequences,
                                   p.tokens, p.cache.block_size, p.cache.num_blocks},
                    {p.block_tables, p.query_start, p.seq_lens});
    Backend::verify(
        MassRows{p.query_start, p.seq_lens, p.first, p.sources, p.rows, p.sequences, mass.size(0), p.mass_capacity},
        {p.query_start, p.seq_lens, p.first, p.sources, p.rows});
    p.scale = float32(scale, "scale");
    p.mass = Base::template written<float>(mass);
    if (p.tokens > 0) Backend::attention_mass(p);
  }
};

}  // namespace pybatch

// The ops on the paged KV cache: writing it, copying its blocks, attention.
#pragma once

#include "pybatch/attention.h"
#include "pybatch/head_dim.h"
#include "pybatch/kv_cache.h"
#include "torch_ops/checks.h"
#include "torch_ops/values.h"

namespace pybatch {

template <class Backend>
struct KvOps : Checks<Backend> {
  using Base = Checks<Backend>;
  using Base::check, Base::expect_present, Base::input, Base::output, Base::vector_like, Base::written;

  static KvCache kv_cache(const Tensor& k, const Tensor& v, const OptionalTensor& k_scale,
                          const OptionalTensor& v_scale) {
    KvCache cache{};
    auto check_blocks = [](const Tensor& t, const char* name, int64_t dim) {
      expect_present(t, name);
      EXPECT(t.dim() == dim, name, ": expected ", dim, " dimensions, got shape ", shape_of(t));
      int64_t stride = 1;
      for (int64_t i = dim - 1; i > 0; stride *= t.size(i), --i) {
        EXPECT(t.size(i) == 1 || t.stride(i) == stride, name, ": expected contiguous blocks");
      }
      EXPECT(t.size(0) <= 1 || t.stride(0) >= stride, name, ": expected blocks that do not overlap");
    };
    check_blocks(k, "k_cache", 4);
    check_blocks(v, "v_cache", 4);
    cache.num_blocks = k.size(0);
    cache.kv_heads = k.size(1);
    const bool packed = k.scalar_type() == ScalarType::Byte;  // i4, two to a byte
    cache.head_dim = k.size(2) * (packed ? 2 : 1);
    cache.block_size = k.size(3);
    EXPECT(v.size(0) == cache.num_blocks && v.size(1) == cache.kv_heads && v.size(2) == cache.block_size &&
               v.size(3) == k.size(2),
           "v_cache: expected shape [", cache.num_blocks, ", ", cache.kv_heads, ", ", cache.block_size, ", ", k.size(2),
           "] (k_cache's with the last two swapped), got ", shape_of(v));
    EXPECT(cache.kv_heads > 0 && cache.kv_heads <= INT32_MAX, "k_cache: expected at least one head and at most ",
           INT32_MAX, ", got shape ", shape_of(k));
    EXPECT(cache.head_dim % 8 == 0 && cache.head_dim >= 8 && cache.head_dim <= kMaxHeadDim,
           "k_cache: expected a head dimension that is a multiple of 8 up to ", kMaxHeadDim, ", got ", cache.head_dim);
    EXPECT(cache.block_size == 8 || cache.block_size == 16 || cache.block_size == 32 || cache.block_size == 64,
           "k_cache: expected a block size of 8, 16, 32 or 64, got ", cache.block_size);
    if (k.scalar_type() == ScalarType::Char) {
      cache.dtype = DType::i8;
    } else if (packed) {
      auto check_words = [](const Tensor& t, const char* name) {
        EXPECT(reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0 && (t.size(0) <= 1 || t.stride(0) % 16 == 0), name,
               ": expected int4 blocks aligned to 16 bytes");
      };
      check_words(k, "k_cache");
      check_words(v, "v_cache");
      cache.dtype = DType::i4;
    } else if (k.scalar_type() == ScalarType::Float8_e4m3fn) {
      EXPECT(Backend::kHasE4m3, "k_cache: expected float32, float16, bfloat16, int8 or uint8 (int4 codes) on ",
             Backend::kDevice, ", got float8_e4m3fn");
      cache.dtype = DType::e4m3;
    } else {
      cache.dtype = float_type(k, "k_cache");
    }
    EXPECT(v.scalar_type() == k.scalar_type(), "v_cache: expected the dtype of k_cache");
    cache.k = k.data_ptr();
    cache.v = v.data_ptr();
    cache.k_block_stride = k.stride(0);
    cache.v_block_stride = v.stride(0);
    if (cache.has_scales()) {
      EXPECT(k_scale.has_value() && v_scale.has_value(), "k_scale, v_scale: expected, since the cache is ",
             name_of(k.scalar_type()));
      auto check_scale = [&](const Tensor& t, const char* name) {
        check_blocks(t, name, packed ? 4 : 3);
        EXPECT(t.scalar_type() == ScalarType::Half, name, ": expected float16, got ", name_of(t.scalar_type()));
        EXPECT(t.size(0) == cache.num_blocks && t.size(1) == cache.kv_heads &&
                   (!packed || t.size(2) == cache.groups()) && t.size(t.dim() - 1) == cache.block_size,
               name, ": expected shape [", cache.num_blocks, ", ", cache.kv_heads, ", ",
               packed ? std::to_string(cache.groups()) + ", " : "", cache.block_size, "], got ", shape_of(t));
      };
      check_scale(*k_scale, "k_scale");
      check_scale(*v_scale, "v_scale");
      cache.k_scale = k_scale->data_ptr();
      cache.v_scale = v_scale->data_ptr();
      cache.k_scale_block_stride = k_scale->stride(0);
      cache.v_scale_block_stride = v_scale->stride(0);
    } else {
      EXPECT(!k_scale.has_value() && !v_scale.has_value(), "k_scale, v_scale: expected none, since the cache is ",
             name_of(k.scalar_type()));
    }
    return cache;
  }

  // One float32 vector a KV head, or null.
  static const float* key_vectors(const OptionalTensor& t, const char* name, const KvCache& cache) {
    if (!t) return nullptr;
    check(*t, name, ScalarType::Float, {cache.kv_heads, cache.head_dim});
    return pointer<float>(*t);
  }

  static void rope_kv_write(Tensor q, const OptionalTensor& k, const OptionalTensor& v, const Tensor& positions,
                            const OptionalTensor& slots, const Tensor& rotary, const OptionalTensor& q_norm,
                            const OptionalTensor& k_norm, const OptionalTensor& v_norm, double norm_eps,
                            bool layer_norm, bool norm_last, const OptionalTensor& query_scale, bool interleaved,
                            Tensor k_cache, Tensor v_cache, OptionalTensor k_scale, OptionalTensor v_scale,
                            const OptionalTensor& key_divisor, const OptionalTensor& key_offset) {
    typename Backend::Scope scope(q);
    RopeKvWriteParams p{};
    p.cache = kv_cache(k_cache, v_cache, k_scale, v_scale);
    int64_t d = p.cache.head_dim;
    p.q = output(q, "q", kAny, kAny);
    p.tokens = q.size(0);
    EXPECT(q.size(1) > 0 && q.size(1) % d == 0, "q: expected a width that is a multiple of the cache's head dimension ",
           d, ", got ", q.size(1));
    p.heads = q.size(1) / d;
    EXPECT(k.has_value() == v.has_value() && k.has_value() == slots.has_value(), "k: expected k, v and slots, or none");
    if (k) {
      p.k = input(*k, "k", p.tokens, p.cache.kv_heads * d);
      p.v = input(*v, "v", p.tokens, p.cache.kv_heads * d);
      expect_same_type(p.k.dtype, "k", p.q.dtype, "q");
      expect_same_type(p.v.dtype, "v", p.q.dtype, "q");
      check(*slots, "slots", ScalarType::Long, {p.tokens});
      p.slots = pointer<int64_t>(*slots);
      Backend::verify(Slots{p.slots, p.tokens, p.cache.num_blocks * p.cache.block_size}, {p.slots});
    }
    check(positions, "positions", ScalarType::Long, {p.tokens});
    check(rotary, "rotary", ScalarType::Float, {kAny, kAny});
    p.rotary_dim = rotary.size(1);
    EXPECT(p.rotary_dim % 2 == 0 && p.rotary_dim <= d, "rotary: expected an even width of at most the head dimension ",
           d, ", got ", p.rotary_dim);
    p.positions = pointer<int64_t>(positions);
    p.rotary = pointer<float>(rotary);
    Backend::verify(Ids{"positions", p.positions, p.tokens, rotary.size(0)}, {p.positions});
    auto head_norm = [&](const OptionalTensor& weight, const char* name, int64_t heads, const void*& data,
                         int64_t& stride) {
      if (!weight) return;
      const bool of_each = weight->defined() && weight->dim() == 2;
      if (of_each) check(*weight, name, q.scalar_type(), {heads, d});
      data = of_each ? weight->data_ptr() : vector_like(*weight, name, q.scalar_type(), d);
      stride = of_each ? d : 0;
    };
    head_norm(q_norm, "q_norm", p.heads, p.q_norm_weight, p.q_norm_stride);
    head_norm(k_norm, "k_norm", p.cache.kv_heads, p.k_norm_weight, p.k_norm_stride);
    if (v_norm) p.v_norm_weight = vector_like(*v_norm, "v_norm", q.scalar_type(), d);
    if (query_scale) {
      check(*query_scale, "query_scale", ScalarType::Float, {rotary.size(0)});
      p.query_scale = pointer<float>(*query_scale);
    }
    p.layer_norm = layer_norm;
    p.norm_last = norm_last;
    p.key_divisor = key_vectors(key_divisor, "key_divisor", p.cache);
    p.key_offset = key_vectors(key_offset, "key_offset", p.cache);
    EXPECT(p.key_divisor == nullptr || p.heads % p.cache.kv_heads == 0,
           "q: expected a width that is a multiple of kv_heads * head_dim = ", d * p.cache.kv_heads, ", got ",
           q.size(1));
    p.norm_eps = float32(norm_eps, "norm_eps");
    p.interleaved = interleaved;
    for (const Tensor& t : {k_cache, v_cache}) Backend::writes(t);
    for (const OptionalTensor& t : {k_scale, v_scale}) {
      if (t) Backend::writes(*t);
    }
    if (p.tokens > 0) Backend::rope_kv_write(p);
  }

  static void copy_between(const Tensor& src, const char* src_name, const Tensor& dst, const char* dst_name,
                           const Tensor& pairs) {
    expect_given(src, src_name);
    expect_given(dst, dst_name);
    typename Backend::Scope scope(src.is_cpu() ? dst : src);
    check(src, src_name, ScalarType::Byte, {kAny, kAny}, Backend::reaches);
    check(dst, dst_name, ScalarType::Byte, {kAny, src.size(1)}, Backend::reaches);
    check(pairs, "pairs", ScalarType::Long, {kAny, 2});
    const bool one_pool = &src == &dst;
    const char *from = pointer<char>(src), *to = pointer<char>(dst);
    EXPECT(one_pool || from + extent_bytes(src) <= to || to + extent_bytes(dst) <= from, dst_name,
           ": expected memory apart from ", src_name, "'s; copy_blocks copies within a pool");
    CopyBlocksParams p{src.data_ptr(), written(dst), pointer<int64_t>(pairs), pairs.size(0), src.size(1)};
    Backend::verify(BlockPairs{p.pairs, p.count, src.size(0), dst.size(0), one_pool}, {p.pairs});
    if (p.count > 0 && p.block_bytes > 0) Backend::copy_blocks(p);
  }

  static void copy_blocks(Tensor pool, const Tensor& pairs) { copy_between(pool, "pool", pool, "pool", pairs); }

  static void swap_blocks(const Tensor& src, Tensor dst, const Tensor& pairs) {
    copy_between(src, "src", dst, "dst", pairs);
  }

  static void paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                              const OptionalTensor& k_scale, const OptionalTensor& v_scale, const Tensor& block_tables,
                              const Tensor& query_start, const Tensor& seq_lens, double scale, int64_t window,
                              double soft_cap, const OptionalTensor& sinks, const OptionalTensor& counters,
                              Tensor out) {
    typename Backend::Scope scope(q);
    PagedAttentionParams p{};
    p.cache = kv_cache(k_cache, v_cache, k_scale, v_scale);
    int64_t d = p.cache.head_dim;
    p.q = input(q, "q", kAny, kAny);
    p.tokens = q.size(0);
    EXPECT(q.size(1) > 0 && q.size(1) % (d * p.cache.kv_heads) == 0,
           "q: expected a width that is a multiple of kv_heads * head_dim = ", d * p.cache.kv_heads, ", got ",
           q.size(1));
    p.heads = q.size(1) / d;
    p.out = output(out, "out", p.tokens, q.size(1));
    expect_same_type(p.out.dtype, "out", p.q.dtype, "q");
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
    EXPECT(window >= 0, "window: expected 0 (none) or a positive number of tokens, got ", window);
    EXPECT(soft_cap >= 0, "soft_cap: expected 0 (none) or a positive number, got ", soft_cap);
    p.scale = float32(scale, "scale");
    p.window = window < INT32_MAX ? window : 0;  // a sequence has no more tokens
    p.soft_cap = float32(soft_cap, "soft_cap");
    if (sinks) p.sinks = static_cast<const float*>(vector_like(*sinks, "sinks", ScalarType::Float, p.heads));
    if (counters) {
      check(*counters, "counters", ScalarType::Int, {kAny});
      EXPECT(counters->numel() > p.sequences * p.heads, "counters: expected at least ", p.sequences * p.heads + 1,
             " (1 + sequences * heads), got ", counters->numel());
      p.counters = static_cast<int32_t*>(counters->data_ptr());
    }
    if (p.tokens > 0) Backend::paged_attention(p);
  }
};

}  // namespace pybatch

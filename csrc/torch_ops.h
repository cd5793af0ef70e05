// The ops as torch calls them, for any backend: checks of every argument, and the params structs that kernels take. Ops
// write into tensors the caller gives (pybatch/ops.py allocates where the caller does not), so that a step of the
// engine allocates nothing here. Only the LibTorch stable ABI is used.
//
// A backend has a function of each kernel's name that takes its params, and
//   Scope          made of one of an op's tensors; what the op does lies within its lifetime
//   holds          whether a tensor is where the kernels work; kDevice says where that is
//   reaches        whether swap_blocks can read and write a tensor
//   kHostReadable  whether the host can look at the values of tensors, and so checks them
//   kHasE4m3       whether KV caches may be float8_e4m3fn
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "pybatch/activation.h"
#include "pybatch/attention.h"
#include "pybatch/embedding.h"
#include "pybatch/kv_cache.h"
#include "pybatch/matmul.h"
#include "pybatch/norm.h"
#include "pybatch/sampling.h"

namespace pybatch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- checks: each names the argument and what was expected ----

template <class... Args>
[[noreturn]] void fail(const Args&... args) {
  std::ostringstream message;
  (message << ... << args);
  throw std::runtime_error(message.str());
}

#define EXPECT(condition, ...) \
  if (!(condition)) fail(__VA_ARGS__)

constexpr int64_t kAny = -1;

inline std::string shape_of(std::initializer_list<int64_t> wanted) {
  std::ostringstream out;
  const char* separator = "[";
  for (int64_t extent : wanted) {
    out << separator << (extent == kAny ? "*" : std::to_string(extent));
    separator = ", ";
  }
  out << "]";
  return out.str();
}

inline std::string shape_of(const Tensor& t) {
  std::ostringstream out;
  out << "[";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << "]";
  return out.str();
}

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return "another dtype";
  }
}

inline DType float_type(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    default: fail(name, ": expected float32, float16 or bfloat16, got ", name_of(t.scalar_type()));
  }
}

inline void expect_same_type(DType a, const char* a_name, DType b, const char* b_name) {
  EXPECT(a == b, a_name, ": expected the dtype of ", b_name);
}

template <class T>
const T* pointer(const Tensor& t) {
  return static_cast<const T*>(t.data_ptr());
}

template <class T>
T* mutable_pointer(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

inline void expect_aligned(const Tensor& t, const char* name) {
  EXPECT(reinterpret_cast<uintptr_t>(t.data_ptr()) % 64 == 0, name, ": expected data aligned to 64 bytes");
}

template <class Backend>
struct Ops {
  // How many of n values the host looks at.
  static int64_t visible(int64_t n) { return Backend::kHostReadable ? n : 0; }

  // t has this dtype, this shape (kAny: any extent) and no gaps.
  static void check(const Tensor& t, const char* name, ScalarType type, std::initializer_list<int64_t> shape,
                    bool (*is_there)(const Tensor&) = Backend::holds) {
    EXPECT(is_there(t), name, ": expected a tensor on ", Backend::kDevice);
    EXPECT(t.scalar_type() == type, name, ": expected ", name_of(type), ", got ", name_of(t.scalar_type()));
    bool fits = t.dim() == static_cast<int64_t>(shape.size());
    for (int64_t i = 0; fits && i < t.dim(); ++i) fits = shape.begin()[i] == kAny || t.size(i) == shape.begin()[i];
    EXPECT(fits, name, ": expected shape ", shape_of(shape), ", got ", shape_of(t));
    EXPECT(t.is_contiguous(), name, ": expected a contiguous tensor");
  }

  // A 2-d tensor whose rows are contiguous but may be apart.
  static void check_rows(const Tensor& t, const char* name, int64_t rows, int64_t width) {
    EXPECT(Backend::holds(t), name, ": expected a tensor on ", Backend::kDevice);
    EXPECT(t.dim() == 2 && (rows == kAny || t.size(0) == rows) && (width == kAny || t.size(1) == width), name,
           ": expected shape ", shape_of({rows, width}), ", got ", shape_of(t));
    EXPECT(t.size(1) <= 1 || t.stride(1) == 1, name, ": expected contiguous rows (stride 1 in the last dimension)");
    EXPECT(t.size(0) <= 1 || t.stride(0) >= t.size(1), name, ": expected rows that do not overlap");
  }

  static ConstMatrix input(const Tensor& t, const char* name, int64_t rows, int64_t width) {
    check_rows(t, name, rows, width);
    return {t.data_ptr(), t.stride(0), float_type(t, name)};
  }

  static Matrix output(const Tensor& t, const char* name, int64_t rows, int64_t width) {
    check_rows(t, name, rows, width);
    return {t.data_ptr(), t.stride(0), float_type(t, name)};
  }

  // A vector of n elements in the dtype of another argument.
  static const void* vector_like(const Tensor& t, const char* name, ScalarType type, int64_t n) {
    check(t, name, type, {n});
    return t.data_ptr();
  }

  // ---- norms, activations, embedding ----

  template <void (*kernel)(const NormParams&)>
  static void norm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, double eps,
                   const OptionalTensor& residual, Tensor out) {
    typename Backend::Scope scope(x);
    NormParams p{};
    p.x = input(x, "x", kAny, kAny);
    p.rows = x.size(0);
    p.width = x.size(1);
    p.out = output(out, "out", p.rows, p.width);
    expect_same_type(p.out.dtype, "out", p.x.dtype, "x");
    p.weight = vector_like(weight, "weight", x.scalar_type(), p.width);
    if (bias) p.bias = vector_like(*bias, "bias", x.scalar_type(), p.width);
    if (residual) {
      p.residual = output(*residual, "residual", p.rows, p.width);
      expect_same_type(p.residual.dtype, "residual", p.x.dtype, "x");
    }
    p.eps = static_cast<float>(eps);
    kernel(p);
  }

  static void rms_norm(const Tensor& x, const Tensor& weight, double eps, const OptionalTensor& residual, Tensor out) {
    norm<&Backend::rms_norm>(x, weight, std::nullopt, eps, residual, out);
  }

  static void layer_norm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, double eps,
                         const OptionalTensor& residual, Tensor out) {
    norm<&Backend::layer_norm>(x, weight, bias, eps, residual, out);
  }

  template <void (*kernel)(const GatedActivationParams&)>
  static void gated_activation(const Tensor& x, Tensor out) {
    typename Backend::Scope scope(x);
    GatedActivationParams p{};
    p.x = input(x, "x", kAny, kAny);
    EXPECT(x.size(1) % 2 == 0, "x: expected an even number of columns (gate, then up), got ", x.size(1));
    p.rows = x.size(0);
    p.width = x.size(1) / 2;
    p.out = output(out, "out", p.rows, p.width);
    expect_same_type(p.out.dtype, "out", p.x.dtype, "x");
    kernel(p);
  }

  static void expect_ids_in_range(const Tensor& ids, const char* name, int64_t limit) {
    const int64_t* id = pointer<int64_t>(ids);
    for (int64_t i = 0, n = visible(ids.numel()); i < n; ++i) {
      EXPECT(id[i] >= 0 && id[i] < limit, name, ": expected ids in [0, ", limit, "), got ", id[i], " at ", i);
    }
  }

  static int64_t packed_int8_groups(const Tensor& weight, const char* name, int64_t n, int64_t k) {
    int64_t panels = (n + kPanel - 1) / kPanel, groups = (k + 3) / 4;
    check(weight, name, ScalarType::Char, {panels, groups + 1, kPanel, 4});
    expect_aligned(weight, name);
    return groups;
  }

  // Packed blocks of a GGUF file's weights; how many bytes a group of them has says their type.
  static GgufType gguf_type(const Tensor& weight, const char* name, int64_t n, int64_t k) {
    check(weight, name, ScalarType::Byte, {kAny, kAny, kAny});
    for (const GgufBlock& block : kGgufBlocks) {
      if (weight.size(2) != kPanel * block.bytes) continue;
      EXPECT(k % block.weights == 0, name, ": expected a multiple of ", block.weights, " weights a column for ",
             block.name, ", got ", k);
      check(weight, name, ScalarType::Byte, {(n + kPanel - 1) / kPanel, k / block.weights, kPanel * block.bytes});
      expect_aligned(weight, name);
      return static_cast<GgufType>(&block - kGgufBlocks);
    }
    std::ostringstream known;
    const char* separator = "";
    for (const GgufBlock& block : kGgufBlocks) {
      known << separator << kPanel * block.bytes << " (" << block.name << ")";
      separator = ", ";
    }
    fail(name, ": expected a last extent of ", known.str(), ", got ", weight.size(2));
  }

  static void embedding(const Tensor& ids, const Tensor& table, const OptionalTensor& scale, int64_t vocab,
                        Tensor out) {
    typename Backend::Scope scope(ids);
    EmbeddingParams p{};
    check(ids, "ids", ScalarType::Long, {kAny});
    p.ids = pointer<int64_t>(ids);
    p.count = ids.size(0);
    p.out = output(out, "out", p.count, kAny);
    p.width = out.size(1);
    p.vocab = vocab;
    EXPECT(vocab > 0, "vocab: expected a positive number, got ", vocab);
    expect_ids_in_range(ids, "ids", vocab);
    p.table = table.data_ptr();
    if (table.scalar_type() == ScalarType::Char) {
      packed_int8_groups(table, "table", vocab, p.width);
      EXPECT(scale.has_value(), "scale: expected the int8 table's scales");
      p.scale = static_cast<const float*>(vector_like(*scale, "scale", ScalarType::Float, vocab));
      p.layout = TableLayout::packed_int8;
      p.table_dtype = DType::i8;
    } else if (table.scalar_type() == ScalarType::Byte) {
      p.gguf_type = gguf_type(table, "table", vocab, p.width);
      p.layout = TableLayout::packed_gguf;
    } else {
      p.table_dtype = float_type(table, "table");
      if (table.dim() == 3) {
        check(table, "table", table.scalar_type(), {(vocab + kPanel - 1) / kPanel, p.width, kPanel});
        p.layout = TableLayout::packed_dense;
      } else {
        check(table, "table", table.scalar_type(), {vocab, p.width});
        p.layout = TableLayout::rows;
      }
    }
    Backend::embedding(p);
  }

  // ---- matmuls ----

  static MatmulParams matmul_params(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                    const OptionalTensor& norm, double norm_eps, int64_t epilogue, const Tensor& out) {
    MatmulParams p{};
    p.x = input(x, "x", kAny, kAny);
    p.m = x.size(0);
    p.k = x.size(1);
    p.out = output(out, "out", p.m, kAny);
    p.width = out.size(1);
    EXPECT(epilogue >= 0 && epilogue <= 3,
           "epilogue: expected 0 (store), 1 (add), 2 (silu_mul) or 3 (gelu_tanh_mul), got ", epilogue);
    p.epilogue = static_cast<Epilogue>(epilogue);
    p.n = is_gated(p.epilogue) ? (p.width + kPanel - 1) / kPanel * kPanel * 2 : p.width;
    p.weight = weight.data_ptr();
    if (bias) {
      p.bias_dtype = float_type(*bias, "bias");
      p.bias = vector_like(*bias, "bias", bias->scalar_type(), p.n);
    }
    if (norm) p.norm = vector_like(*norm, "norm", x.scalar_type(), p.k);
    p.norm_eps = static_cast<float>(norm_eps);
    return p;
  }

  static void matmul_dense(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& norm, double norm_eps, int64_t epilogue, Tensor out) {
    typename Backend::Scope scope(x);
    MatmulParams p = matmul_params(x, weight, bias, norm, norm_eps, epilogue, out);
    p.weight_dtype = float_type(weight, "weight");
    check(weight, "weight", weight.scalar_type(), {(p.n + kPanel - 1) / kPanel, p.k, kPanel});
    expect_aligned(weight, "weight");
    Backend::matmul_dense(p);
  }

  template <void (*kernel)(const MatmulParams&)>
  static void matmul_int8(const Tensor& x, const Tensor& weight, const Tensor& scale, const OptionalTensor& bias,
                          const OptionalTensor& norm, double norm_eps, int64_t epilogue, Tensor out) {
    typename Backend::Scope scope(x);
    MatmulParams p = matmul_params(x, weight, bias, norm, norm_eps, epilogue, out);
    p.weight_dtype = DType::i8;
    EXPECT(p.k <= 131072, "x: expected at most 131072 columns (int32 sums of int8 products), got ", p.k);
    packed_int8_groups(weight, "weight", p.n, p.k);
    p.scale = static_cast<const float*>(vector_like(scale, "scale", ScalarType::Float, p.n));
    kernel(p);
  }

  static void matmul_gguf(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& norm,
                          double norm_eps, int64_t epilogue, Tensor out) {
    typename Backend::Scope scope(x);
    MatmulParams p = matmul_params(x, weight, bias, norm, norm_eps, epilogue, out);
    p.gguf_type = gguf_type(weight, "weight", p.n, p.k);
    Backend::matmul_gguf(p);
  }

  // ---- KV cache ----

  static KvCache kv_cache(const Tensor& k, const Tensor& v, const OptionalTensor& k_scale,
                          const OptionalTensor& v_scale) {
    KvCache cache{};
    auto check_blocks = [](const Tensor& t, const char* name, int64_t dim) {
      EXPECT(Backend::holds(t), name, ": expected a tensor on ", Backend::kDevice);
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
    cache.head_dim = k.size(2);
    cache.block_size = k.size(3);
    EXPECT(v.size(0) == cache.num_blocks && v.size(1) == cache.kv_heads && v.size(2) == cache.block_size &&
               v.size(3) == cache.head_dim,
           "v_cache: expected shape [", cache.num_blocks, ", ", cache.kv_heads, ", ", cache.block_size, ", ",
           cache.head_dim, "] (k_cache's with the last two swapped), got ", shape_of(v));
    EXPECT(cache.head_dim % 8 == 0 && cache.head_dim >= 8 && cache.head_dim <= 256,
           "k_cache: expected a head dimension that is a multiple of 8 up to 256, got ", cache.head_dim);
    EXPECT(cache.block_size == 8 || cache.block_size == 16 || cache.block_size == 32 || cache.block_size == 64,
           "k_cache: expected a block size of 8, 16, 32 or 64, got ", cache.block_size);
    if (k.scalar_type() == ScalarType::Char) {
      cache.dtype = DType::i8;
    } else if (k.scalar_type() == ScalarType::Float8_e4m3fn) {
      EXPECT(Backend::kHasE4m3, "k_cache: expected float32, float16, bfloat16 or int8 on ", Backend::kDevice,
             ", got float8_e4m3fn");
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
        check_blocks(t, name, 3);
        EXPECT(t.scalar_type() == ScalarType::Float, name, ": expected float32");
        EXPECT(t.size(0) == cache.num_blocks && t.size(1) == cache.kv_heads && t.size(2) == cache.block_size, name,
               ": expected shape [", cache.num_blocks, ", ", cache.kv_heads, ", ", cache.block_size, "], got ",
               shape_of(t));
      };
      check_scale(*k_scale, "k_scale");
      check_scale(*v_scale, "v_scale");
      cache.k_scale = mutable_pointer<float>(*k_scale);
      cache.v_scale = mutable_pointer<float>(*v_scale);
      cache.k_scale_block_stride = k_scale->stride(0);
      cache.v_scale_block_stride = v_scale->stride(0);
    } else {
      EXPECT(!k_scale.has_value() && !v_scale.has_value(), "k_scale, v_scale: expected none, since the cache is ",
             name_of(k.scalar_type()));
    }
    return cache;
  }

  static void rope_kv_write(Tensor q, const Tensor& k, const Tensor& v, const Tensor& positions, const Tensor& slots,
                            const Tensor& rotary, const OptionalTensor& q_norm, const OptionalTensor& k_norm,
                            double norm_eps, bool interleaved, Tensor k_cache, Tensor v_cache, OptionalTensor k_scale,
                            OptionalTensor v_scale) {
    typename Backend::Scope scope(q);
    RopeKvWriteParams p{};
    p.cache = kv_cache(k_cache, v_cache, k_scale, v_scale);
    int64_t d = p.cache.head_dim;
    p.q = output(q, "q", kAny, kAny);
    p.tokens = q.size(0);
    EXPECT(q.size(1) % d == 0, "q: expected a width that is a multiple of the cache's head dimension ", d, ", got ",
           q.size(1));
    p.heads = q.size(1) / d;
    p.k = input(k, "k", p.tokens, p.cache.kv_heads * d);
    p.v = input(v, "v", p.tokens, p.cache.kv_heads * d);
    expect_same_type(p.k.dtype, "k", p.q.dtype, "q");
    expect_same_type(p.v.dtype, "v", p.q.dtype, "q");
    check(positions, "positions", ScalarType::Long, {p.tokens});
    check(slots, "slots", ScalarType::Long, {p.tokens});
    check(rotary, "rotary", ScalarType::Float, {kAny, kAny});
    p.rotary_dim = rotary.size(1);
    EXPECT(p.rotary_dim % 2 == 0 && p.rotary_dim <= d, "rotary: expected an even width of at most the head dimension ",
           d, ", got ", p.rotary_dim);
    p.positions = pointer<int64_t>(positions);
    p.slots = pointer<int64_t>(slots);
    p.rotary = pointer<float>(rotary);
    expect_ids_in_range(positions, "positions", rotary.size(0));
    for (int64_t i = 0; i < visible(p.tokens); ++i) {
      EXPECT(p.slots[i] < p.cache.num_blocks * p.cache.block_size, "slots: expected below ",
             p.cache.num_blocks * p.cache.block_size, ", got ", p.slots[i], " at ", i);
    }
    if (q_norm) p.q_norm_weight = vector_like(*q_norm, "q_norm", q.scalar_type(), d);
    if (k_norm) p.k_norm_weight = vector_like(*k_norm, "k_norm", q.scalar_type(), d);
    p.norm_eps = static_cast<float>(norm_eps);
    p.interleaved = interleaved;
    Backend::rope_kv_write(p);
  }

  static void check_block_pairs(const Tensor& pairs, int64_t src_blocks, int64_t dst_blocks) {
    check(pairs, "pairs", ScalarType::Long, {kAny, 2});
    const int64_t* pair = pointer<int64_t>(pairs);
    for (int64_t i = 0; i < visible(pairs.size(0)); ++i) {
      EXPECT(pair[2 * i] >= 0 && pair[2 * i] < src_blocks, "pairs: expected source blocks in [0, ", src_blocks,
             "), got ", pair[2 * i], " at ", i);
      EXPECT(pair[2 * i + 1] >= 0 && pair[2 * i + 1] < dst_blocks, "pairs: expected destination blocks in [0, ",
             dst_blocks, "), got ", pair[2 * i + 1], " at ", i);
    }
  }

  static void copy_between(const Tensor& src, const char* src_name, const Tensor& dst, const char* dst_name,
                           const Tensor& pairs) {
    typename Backend::Scope scope(src.is_cpu() ? dst : src);
    check(src, src_name, ScalarType::Byte, {kAny, kAny}, Backend::reaches);
    check(dst, dst_name, ScalarType::Byte, {kAny, src.size(1)}, Backend::reaches);
    check_block_pairs(pairs, src.size(0), dst.size(0));
    CopyBlocksParams p{src.data_ptr(), dst.data_ptr(), pointer<int64_t>(pairs), pairs.size(0), src.size(1)};
    Backend::copy_blocks(p);
  }

  static void copy_blocks(Tensor pool, const Tensor& pairs) {
    typename Backend::Scope scope(pool);
    check(pool, "pool", ScalarType::Byte, {kAny, kAny});
    // Pairs run in parallel, so no block may be both read and written.
    check_block_pairs(pairs, pool.size(0), pool.size(0));
    const int64_t* pair = pointer<int64_t>(pairs);
    std::vector<uint8_t> written(static_cast<size_t>(visible(pool.size(0))));
    for (int64_t i = 0; i < visible(pairs.size(0)); ++i) {
      uint8_t& mark = written[static_cast<size_t>(pair[2 * i + 1])];
      EXPECT(!mark, "pairs: expected each destination block once, got ", pair[2 * i + 1], " twice");
      mark = 1;
    }
    for (int64_t i = 0; i < visible(pairs.size(0)); ++i) {
      EXPECT(!written[static_cast<size_t>(pair[2 * i])],
             "pairs: expected no block as both source and destination, got ", pair[2 * i]);
    }
    copy_between(pool, "pool", pool, "pool", pairs);
  }

  static void swap_blocks(const Tensor& src, Tensor dst, const Tensor& pairs) {
    copy_between(src, "src", dst, "dst", pairs);
  }

  static void paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                              const OptionalTensor& k_scale, const OptionalTensor& v_scale, const Tensor& block_tables,
                              const Tensor& query_start, const Tensor& seq_lens, double scale, int64_t window,
                              double soft_cap, const OptionalTensor& sinks, Tensor out) {
    typename Backend::Scope scope(q);
    PagedAttentionParams p{};
    p.cache = kv_cache(k_cache, v_cache, k_scale, v_scale);
    int64_t d = p.cache.head_dim;
    p.q = input(q, "q", kAny, kAny);
    p.tokens = q.size(0);
    EXPECT(q.size(1) % (d * p.cache.kv_heads) == 0,
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
    EXPECT(!Backend::kHostReadable || (p.query_start[0] == 0 && p.query_start[p.sequences] == p.tokens),
           "query_start: expected to begin with 0 and end with ", p.tokens, " (the rows of q)");
    for (int64_t s = 0; s < visible(p.sequences); ++s) {
      int64_t queries = p.query_start[s + 1] - p.query_start[s];
      EXPECT(queries >= 0, "query_start: expected ascending values");
      EXPECT(p.seq_lens[s] >= queries, "seq_lens: expected at least the ", queries, " queries of sequence ", s,
             ", got ", p.seq_lens[s]);
      int64_t blocks = (p.seq_lens[s] + p.cache.block_size - 1) / p.cache.block_size;
      EXPECT(blocks <= p.block_table_stride, "block_tables: expected at least ", blocks, " columns for sequence ", s,
             ", got ", p.block_table_stride);
      for (int64_t b = 0; b < blocks; ++b) {
        int32_t block = p.block_tables[s * p.block_table_stride + b];
        EXPECT(block >= 0 && block < p.cache.num_blocks, "block_tables: expected blocks in [0, ", p.cache.num_blocks,
               "), got ", block, " in sequence ", s);
      }
    }
    EXPECT(window >= 0, "window: expected 0 (none) or a positive number of tokens, got ", window);
    EXPECT(soft_cap >= 0, "soft_cap: expected 0 (none) or a positive number, got ", soft_cap);
    p.scale = static_cast<float>(scale);
    p.window = window;
    p.soft_cap = static_cast<float>(soft_cap);
    if (sinks) p.sinks = static_cast<const float*>(vector_like(*sinks, "sinks", ScalarType::Float, p.heads));
    Backend::paged_attention(p);
  }

  // ---- sampling ----

  static void check_logits(const Tensor& logits) {
    check_rows(logits, "logits", kAny, kAny);
    EXPECT(logits.scalar_type() == ScalarType::Float, "logits: expected float32, got ", name_of(logits.scalar_type()));
    EXPECT(logits.size(1) > 0, "logits: expected at least one column");
  }

  // Offsets of a ragged list: ascending, from 0 to the list's length.
  static const int64_t* ragged(const Tensor& starts, const char* name, int64_t rows, int64_t length) {
    check(starts, name, ScalarType::Long, {rows + 1});
    const int64_t* start = pointer<int64_t>(starts);
    bool ascending = !Backend::kHostReadable || (start[0] == 0 && start[rows] == length);
    for (int64_t i = 0; i < visible(rows); ++i) ascending = ascending && start[i] <= start[i + 1];
    EXPECT(ascending, name, ": expected ascending offsets from 0 to ", length);
    return start;
  }

  static void adjust_logits(Tensor logits, const Tensor& repetition, const Tensor& presence, const Tensor& frequency,
                            const Tensor& history, const Tensor& history_start, const Tensor& output_start,
                            const Tensor& bias_ids, const Tensor& bias_values, const Tensor& bias_start) {
    typename Backend::Scope scope(logits);
    check_logits(logits);
    AdjustLogitsParams p{};
    p.logits = mutable_pointer<float>(logits);
    p.row_stride = logits.stride(0);
    p.rows = logits.size(0);
    p.vocab = logits.size(1);
    check(repetition, "repetition", ScalarType::Float, {p.rows});
    check(presence, "presence", ScalarType::Float, {p.rows});
    check(frequency, "frequency", ScalarType::Float, {p.rows});
    p.repetition = pointer<float>(repetition);
    p.presence = pointer<float>(presence);
    p.frequency = pointer<float>(frequency);
    check(history, "history", ScalarType::Long, {kAny});
    expect_ids_in_range(history, "history", p.vocab);
    p.history = pointer<int64_t>(history);
    p.history_start = ragged(history_start, "history_start", p.rows, history.size(0));
    check(output_start, "output_start", ScalarType::Long, {p.rows});
    p.output_start = pointer<int64_t>(output_start);
    for (int64_t i = 0; i < visible(p.rows); ++i) {
      EXPECT(p.output_start[i] >= p.history_start[i] && p.output_start[i] <= p.history_start[i + 1],
             "output_start: expected within the history of row ", i);
    }
    check(bias_ids, "bias_ids", ScalarType::Long, {kAny});
    expect_ids_in_range(bias_ids, "bias_ids", p.vocab);
    check(bias_values, "bias_values", ScalarType::Float, {bias_ids.size(0)});
    p.bias_ids = pointer<int64_t>(bias_ids);
    p.bias_values = pointer<float>(bias_values);
    p.bias_start = ragged(bias_start, "bias_start", p.rows, bias_ids.size(0));
    Backend::adjust_logits(p);
  }

  static void sample(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                     const Tensor& min_p, const Tensor& seeds, const Tensor& positions, Tensor out) {
    typename Backend::Scope scope(logits);
    check_logits(logits);
    SampleParams p{};
    p.logits = pointer<float>(logits);
    p.row_stride = logits.stride(0);
    p.rows = logits.size(0);
    p.vocab = logits.size(1);
    check(temperature, "temperature", ScalarType::Float, {p.rows});
    check(top_k, "top_k", ScalarType::Long, {p.rows});
    check(top_p, "top_p", ScalarType::Float, {p.rows});
    check(min_p, "min_p", ScalarType::Float, {p.rows});
    check(seeds, "seeds", ScalarType::Long, {p.rows});
    check(positions, "positions", ScalarType::Long, {p.rows});
    check(out, "out", ScalarType::Long, {p.rows});
    p.temperature = pointer<float>(temperature);
    p.top_k = pointer<int64_t>(top_k);
    p.top_p = pointer<float>(top_p);
    p.min_p = pointer<float>(min_p);
    p.seeds = pointer<int64_t>(seeds);
    p.positions = pointer<int64_t>(positions);
    p.out = mutable_pointer<int64_t>(out);
    for (int64_t i = 0; i < visible(p.rows); ++i) {
      EXPECT(p.temperature[i] >= 0, "temperature: expected 0 or more, got ", p.temperature[i], " at ", i);
      EXPECT(p.top_p[i] > 0 && p.top_p[i] <= 1, "top_p: expected in (0, 1], got ", p.top_p[i], " at ", i);
      EXPECT(p.min_p[i] >= 0 && p.min_p[i] <= 1, "min_p: expected in [0, 1], got ", p.min_p[i], " at ", i);
    }
    Backend::sample(p);
  }

  static void token_logprobs(const Tensor& logits, const Tensor& tokens, Tensor logprob, Tensor rank, Tensor top_ids,
                             Tensor top_logprobs) {
    typename Backend::Scope scope(logits);
    check_logits(logits);
    TokenLogprobsParams p{};
    p.logits = pointer<float>(logits);
    p.row_stride = logits.stride(0);
    p.rows = logits.size(0);
    p.vocab = logits.size(1);
    check(tokens, "tokens", ScalarType::Long, {p.rows});
    expect_ids_in_range(tokens, "tokens", p.vocab);
    check(logprob, "logprob", ScalarType::Float, {p.rows});
    check(rank, "rank", ScalarType::Long, {p.rows});
    check(top_ids, "top_ids", ScalarType::Long, {p.rows, kAny});
    p.num_top = top_ids.size(1);
    EXPECT(p.num_top <= p.vocab, "top_ids: expected at most ", p.vocab, " columns (the vocabulary), got ", p.num_top);
    check(top_logprobs, "top_logprobs", ScalarType::Float, {p.rows, p.num_top});
    p.tokens = pointer<int64_t>(tokens);
    p.logprob = mutable_pointer<float>(logprob);
    p.rank = mutable_pointer<int64_t>(rank);
    p.top_ids = mutable_pointer<int64_t>(top_ids);
    p.top_logprobs = mutable_pointer<float>(top_logprobs);
    Backend::token_logprobs(p);
  }

  static void implement(torch::stable::detail::StableLibrary& m) {
    m.impl("rms_norm", TORCH_BOX(&rms_norm));
    m.impl("layer_norm", TORCH_BOX(&layer_norm));
    m.impl("silu_mul", TORCH_BOX(&gated_activation<&Backend::silu_mul>));
    m.impl("gelu_tanh_mul", TORCH_BOX(&gated_activation<&Backend::gelu_tanh_mul>));
    m.impl("embedding", TORCH_BOX(&embedding));
    m.impl("matmul_dense", TORCH_BOX(&matmul_dense));
    m.impl("matmul_w8a16", TORCH_BOX(&matmul_int8<&Backend::matmul_w8a16>));
    m.impl("matmul_w8a8", TORCH_BOX(&matmul_int8<&Backend::matmul_w8a8>));
    m.impl("matmul_gguf", TORCH_BOX(&matmul_gguf));
    m.impl("rope_kv_write", TORCH_BOX(&rope_kv_write));
    m.impl("copy_blocks", TORCH_BOX(&copy_blocks));
    m.impl("swap_blocks", TORCH_BOX(&swap_blocks));
    m.impl("paged_attention", TORCH_BOX(&paged_attention));
    m.impl("adjust_logits", TORCH_BOX(&adjust_logits));
    m.impl("sample", TORCH_BOX(&sample));
    m.impl("token_logprobs", TORCH_BOX(&token_logprobs));
  }
};

}  // namespace pybatch

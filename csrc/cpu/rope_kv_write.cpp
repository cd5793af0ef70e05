#include "cpu/kv_quantise.h"
#include "cpu/vec.h"
#include "pybatch/kv_cache.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kLineBytes = 64;

// One head in fp32, with zeros up to a whole vector.
struct alignas(64) Head {
  float x[kMaxHeadDim];
};

template <class T>
void load_head(const T* x, int64_t depth, Head& head) {
  for (int64_t i = 0; i < depth; i += kLanes) store(head.x + i, load_first(x + i, depth - i));
}

template <class T>
void store_head(const Head& head, int64_t depth, T* x) {
  for (int64_t i = 0; i < depth; i += kLanes) store_first(x + i, load(head.x + i), depth - i);
}

template <class T>
PYBATCH_INLINE F32x16 rounded(F32x16 a) {
  T buffer[kLanes];
  store(buffer, a);
  return load(buffer);
}

// As Hugging Face models do it: RMSNorm's value is rounded to T before the weight, and either's product after.
template <class T>
void normalise(Head& head, int64_t depth, const T* weight, float eps, bool layer_norm) {
  F32x16 sum = zeros();
  if (layer_norm) {
    for (int64_t i = 0; i < depth; i += kLanes) sum = sum + load(head.x + i);
    const F32x16 mean = broadcast(reduce_add(sum) / static_cast<float>(depth));
    for (int64_t i = 0; i < depth; i += kLanes) store_first(head.x + i, load(head.x + i) - mean, depth - i);
    sum = zeros();
  }
  for (int64_t i = 0; i < depth; i += kLanes) {
    F32x16 x = load(head.x + i);
    sum = fma(x, x, sum);
  }
  const float mean = reduce_add(sum) / static_cast<float>(depth);
  const F32x16 inverse = broadcast(1.0f / __builtin_sqrtf(mean + eps));
  for (int64_t i = 0; i < depth; i += kLanes) {
    const F32x16 y = load(head.x + i) * inverse, w = load_first(weight + i, depth - i);
    store(head.x + i, rounded<T>((layer_norm ? y : rounded<T>(y)) * w));
  }
}

void rotate(Head& head, int64_t rotary_dim, const float* rotary, bool interleaved) {
  const int64_t half = rotary_dim / 2;
  const float *cos = rotary, *sin = rotary + half;
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = head.x[2 * i], b = head.x[2 * i + 1];
      head.x[2 * i] = a * cos[i] - b * sin[i];
      head.x[2 * i + 1] = b * cos[i] + a * sin[i];
    }
    return;
  }
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t n = half - i;
    float *first = head.x + i, *second = first + half;
    const F32x16 a = load_first(first, n), b = load_first(second, n);
    const F32x16 c = load_first(cos + i, n), s = load_first(sin + i, n);
    store_first(first, a * c - b * s, n);
    store_first(second, b * c + a * s, n);
  }
}

template <class T>
PYBATCH_INLINE void write(T* to, int64_t stride, const float* x, int64_t depth) {
  for (int64_t i = 0; i < depth; i += kLanes) {
    T buffer[kLanes];
    store(buffer, load(x + i));
    const int64_t n = depth - i < kLanes ? depth - i : kLanes;
    for (int64_t j = 0; j < n; ++j) to[(i + j) * stride] = buffer[j];
  }
}
PYBATCH_INLINE void write(int8_t* to, int64_t stride, const float* x, int64_t depth) {
  for (int64_t i = 0; i < depth; ++i) to[i * stride] = static_cast<int8_t>(static_cast<int32_t>(x[i]));
}

// One head of a token at `offset` of its block, of K or of V; `at` is where the head begins in the block. scales: the
// token's first, for quantised caches.
struct HeadWriter {
  const KvCache& cache;
  bool is_key;
  void* at;
  f16* scales;
  int64_t offset;

  void write_int4(Head& head) const;
  void operator()(Head& head) const {
    if (cache.dtype == DType::i4) return write_int4(head);
    const int64_t depth = cache.head_dim, stride = is_key ? cache.block_size : 1,
                  first = is_key ? offset : offset * depth;
    if (cache.dtype == DType::i8) {
      *scales = quantise<false>(head.x, depth);
      return write(static_cast<int8_t*>(at) + first, stride, head.x, depth);
    }
    with_float_type(cache.dtype, [&]<class T>(T*) { write(static_cast<T*>(at) + first, stride, head.x, depth); });
  }
};

void HeadWriter::write_int4(Head& head) const {
  const int64_t depth = cache.head_dim;
  quantise_int4(head.x, depth, scales, cache.block_size);
  if (is_key) return write_int4_key(head.x, depth, static_cast<uint32_t*>(at) + offset, cache.block_size);
  for (int64_t g = 0; g < depth; g += kInt4Group) {
    const int64_t units = (depth - g < kInt4Group ? depth - g : kInt4Group) / 4;
    uint16_t* to = static_cast<uint16_t*>(at) + offset / 4 * depth + g + offset % 4;
    for (int64_t u = 0; u < units; ++u) {
      uint32_t word = 0;
      for (int64_t i = 0; i < 4; ++i) word |= bits_of(head.x[g + u + i * units]) << 4 * i;
      to[4 * u] = static_cast<uint16_t>(word);
    }
  }
}

// Prefetches one of `parts` equal parts of the lines that a token will be written to. A key has a line for almost every
// element, too many to prefetch at once. Inlined, since GCC drops calls of a function that only prefetches.
PYBATCH_INLINE void prefetch_slot(const KvCache& c, int64_t slot, int64_t part, int64_t parts) {
  if (slot < 0) return;
  const int64_t block = slot / c.block_size, offset = slot % c.block_size;
  const bool packed = c.dtype == DType::i4;
  const int64_t bytes = size_of(c.dtype), element = packed ? 4 : bytes,
                rows = c.kv_heads * c.head_dim / (packed ? 8 : 1);
  const char* k = static_cast<const char*>(c.k) + block * c.k_block_stride * bytes + offset * element;
  const int64_t row_bytes = c.block_size * element;
  const int64_t rows_a_line = row_bytes < kLineBytes ? kLineBytes / row_bytes : 1;
  for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; row += rows_a_line) {
    __builtin_prefetch(k + row * row_bytes, 0, 2);
  }
  if (part >= c.kv_heads) return;
  const int64_t run = packed ? 4 : 1, run_bytes = c.head_dim * (packed ? 2 : bytes);  // V: of so many tokens
  const char* v = static_cast<const char*>(c.v) + block * c.v_block_stride * bytes +
                  (part * c.block_size + offset) / run * run_bytes;
  for (int64_t i = 0; i < run_bytes; i += kLineBytes) __builtin_prefetch(v + i, 0, 2);
}

void scale(Head& head, int64_t depth, float by) {
  for (int64_t i = 0; i < depth; i += kLanes) store(head.x + i, load(head.x + i) * broadcast(by));
}

void multiply(Head& head, int64_t depth, const float* by) {
  for (int64_t i = 0; i < depth; i += kLanes) store(head.x + i, load(head.x + i) * load_first(by + i, depth - i));
}

// As the cache keeps a key; see RopeKvWriteParams.
void shift(Head& head, int64_t depth, const float* divisor, const float* offset) {
  for (int64_t i = 0; i < depth; i += kLanes) {
    const int64_t n = depth - i < kLanes ? depth - i : kLanes;
    F32x16 x = load(head.x + i);
    if (divisor) x = x / select_first(n, load_first(divisor + i, n), broadcast(1.0f));
    if (offset) x = x - load_first(offset + i, n);
    store(head.x + i, x);
  }
}

template <class T>
void rope_kv_write_token(const RopeKvWriteParams& p, int64_t token, int64_t next_slot) {
  const KvCache& c = p.cache;
  const int64_t depth = c.head_dim;
  const float* rotary = p.rotary + p.positions[token] * p.rotary_dim;
  const int64_t group = p.heads / c.kv_heads;
  Head head;
  // Of a weight for each head, or one for all.
  auto turn = [&](const void* weights, int64_t stride, int64_t h) {
    auto norm = [&] {
      if (weights) {
        normalise(head, depth, static_cast<const T*>(weights) + h * stride, p.norm_eps, p.layer_norm);
      }
    };
    if (!p.norm_last) norm();
    rotate(head, p.rotary_dim, rotary, p.interleaved);
    if (p.norm_last) norm();
  };

  T* q = static_cast<T*>(p.q.data) + token * p.q.row_stride;
  for (int64_t h = 0; h < p.heads; ++h, q += depth) {
    load_head(q, depth, head);
    turn(p.q_norm_weight, p.q_norm_stride, h);
    if (p.query_scale) scale(head, depth, p.query_scale[p.positions[token]]);
    if (p.key_divisor) multiply(head, depth, p.key_divisor + h / group * depth);
    store_head(head, depth, q);
    prefetch_slot(c, next_slot, h, p.heads);
  }

  const int64_t slot = p.slot(token);
  if (slot < 0) return;
  const int64_t block = slot / c.block_size, offset = slot % c.block_size;
  const T* k = static_cast<const T*>(p.k.data) + token * p.k.row_stride;
  const T* v = static_cast<const T*>(p.v.data) + token * p.v.row_stride;
  auto writer = [&](bool is_key, int64_t h) -> HeadWriter {
    void *data = is_key ? c.k : c.v, *scale = is_key ? c.k_scale : c.v_scale;
    const int64_t stride = is_key ? c.k_block_stride : c.v_block_stride;
    const int64_t scale_stride = is_key ? c.k_scale_block_stride : c.v_scale_block_stride;
    const int64_t head_bytes = depth * c.block_size * size_of(c.dtype) / (c.dtype == DType::i4 ? 2 : 1);
    const int64_t first_scale = block * scale_stride + h * c.groups() * c.block_size + offset;
    return {c, is_key, static_cast<char*>(data) + block * stride * size_of(c.dtype) + h * head_bytes,
            scale ? static_cast<f16*>(scale) + first_scale : nullptr, offset};
  };
  for (int64_t h = 0; h < c.kv_heads; ++h, k += depth, v += depth) {
    load_head(k, depth, head);
    turn(p.k_norm_weight, p.k_norm_stride, h);
    const int64_t first = h * depth;
    shift(head, depth, p.key_divisor ? p.key_divisor + first : nullptr, p.key_offset ? p.key_offset + first : nullptr);
    writer(true, h)(head);
    load_head(v, depth, head);
    if (p.v_norm_weight) normalise(head, depth, static_cast<const T*>(p.v_norm_weight), p.norm_eps, p.layer_norm);
    writer(false, h)(head);
  }
}

}  // namespace

void rope_kv_write(const RopeKvWriteParams& p) {
  const int64_t work = (p.heads + 2 * p.cache.kv_heads) * p.cache.head_dim;
  with_float_type(p.q.dtype, [&]<class T>(T*) {
    parallel_for(p.tokens, 8192 / work + 1, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        rope_kv_write_token<T>(p, token, token + 1 < end ? p.slot(token + 1) : -1);
      }
    });
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

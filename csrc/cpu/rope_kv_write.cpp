#include "cpu/kernels.h"
#include "cpu/vec.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kMaxHeadDim = 256;
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

// RMSNorm as Hugging Face models do it: the normalised value is rounded to T before the weight, the product after.
template <class T>
void normalise(Head& head, int64_t depth, const T* weight, float eps) {
  F32x16 sum = zeros();
  for (int64_t i = 0; i < depth; i += kLanes) {
    F32x16 x = load(head.x + i);
    sum = fma(x, x, sum);
  }
  const float mean = reduce_add(sum) / static_cast<float>(depth);
  const F32x16 inverse = broadcast(1.0f / __builtin_sqrtf(mean + eps));
  for (int64_t i = 0; i < depth; i += kLanes) {
    F32x16 y = rounded<T>(load(head.x + i) * inverse);
    store(head.x + i, rounded<T>(y * load_first(weight + i, depth - i)));
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

// Scales a head to int8 in [-127, 127] in place and returns the scale: x ~ q * scale.
float quantise(Head& head, int64_t depth) {
  F32x16 largest = zeros();
  for (int64_t i = 0; i < depth; i += kLanes) largest = max(largest, abs(load(head.x + i)));
  const float scale = reduce_max(largest) / 127.0f;
  const F32x16 divisor = broadcast(scale > 0.0f ? scale : 1.0f), limit = broadcast(127.0f);
  for (int64_t i = 0; i < depth; i += kLanes) {
    F32x16 q = round(load(head.x + i) / divisor);
    store(head.x + i, max(min(q, limit), zeros() - limit));
  }
  return scale;
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

// Writes one head at to[0], to[stride], ...; *scale is written for int8 caches only.
void write_head(Head& head, int64_t depth, DType dtype, void* base, int64_t offset, int64_t stride, float* scale) {
  if (dtype == DType::i8) {
    *scale = quantise(head, depth);
    return write(static_cast<int8_t*>(base) + offset, stride, head.x, depth);
  }
  with_float_type(dtype, [&]<class T>(T*) { write(static_cast<T*>(base) + offset, stride, head.x, depth); });
}

// Prefetches one of `parts` equal parts of the lines that a token will be written to. A key has a line for almost every
// element, too many to prefetch at once. Inlined, since GCC drops calls of a function that only prefetches.
PYBATCH_INLINE void prefetch_slot(const KvCache& c, int64_t slot, int64_t part, int64_t parts) {
  if (slot < 0) return;
  const int64_t block = slot / c.block_size, offset = slot % c.block_size;
  const int64_t bytes = size_of(c.dtype);
  const char* k = static_cast<const char*>(c.k) + (block * c.k_block_stride + offset) * bytes;
  const int64_t row_bytes = c.block_size * bytes, rows = c.kv_heads * c.head_dim;
  const int64_t rows_a_line = row_bytes < kLineBytes ? kLineBytes / row_bytes : 1;
  for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; row += rows_a_line) {
    __builtin_prefetch(k + row * row_bytes, 0, 2);
  }
  if (part >= c.kv_heads) return;
  const char* v =
      static_cast<const char*>(c.v) + (block * c.v_block_stride + (part * c.block_size + offset) * c.head_dim) * bytes;
  for (int64_t i = 0; i < c.head_dim * bytes; i += kLineBytes) __builtin_prefetch(v + i, 0, 2);
}

template <class T>
void rope_kv_write_token(const RopeKvWriteParams& p, int64_t token, int64_t next_slot) {
  const KvCache& c = p.cache;
  const int64_t depth = c.head_dim;
  const float* rotary = p.rotary + p.positions[token] * p.rotary_dim;
  Head head;

  T* q = static_cast<T*>(p.q.data) + token * p.q.row_stride;
  for (int64_t h = 0; h < p.heads; ++h, q += depth) {
    load_head(q, depth, head);
    if (p.q_norm_weight) normalise(head, depth, static_cast<const T*>(p.q_norm_weight), p.norm_eps);
    rotate(head, p.rotary_dim, rotary, p.interleaved);
    store_head(head, depth, q);
    prefetch_slot(c, next_slot, h, p.heads);
  }

  const int64_t slot = p.slots[token];
  if (slot < 0) return;
  const int64_t block = slot / c.block_size, offset = slot % c.block_size;
  const T* k = static_cast<const T*>(p.k.data) + token * p.k.row_stride;
  const T* v = static_cast<const T*>(p.v.data) + token * p.v.row_stride;
  for (int64_t h = 0; h < c.kv_heads; ++h, k += depth, v += depth) {
    const int64_t start = h * depth * c.block_size, scale = h * c.block_size + offset;
    float* k_scale = c.k_scale ? c.k_scale + block * c.k_scale_block_stride + scale : nullptr;
    float* v_scale = c.v_scale ? c.v_scale + block * c.v_scale_block_stride + scale : nullptr;
    load_head(k, depth, head);
    if (p.k_norm_weight) normalise(head, depth, static_cast<const T*>(p.k_norm_weight), p.norm_eps);
    rotate(head, p.rotary_dim, rotary, p.interleaved);
    write_head(head, depth, c.dtype, c.k, block * c.k_block_stride + start + offset, c.block_size, k_scale);
    load_head(v, depth, head);
    write_head(head, depth, c.dtype, c.v, block * c.v_block_stride + start + offset * depth, 1, v_scale);
  }
}

}  // namespace

void rope_kv_write(const RopeKvWriteParams& p) {
  const int64_t work = (p.heads + 2 * p.cache.kv_heads) * p.cache.head_dim;
  with_float_type(p.q.dtype, [&]<class T>(T*) {
    parallel_for(p.tokens, 8192 / work + 1, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        rope_kv_write_token<T>(p, token, token + 1 < end ? p.slots[token + 1] : -1);
      }
    });
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

#include "cpu/norm_rows.h"
#include "cpu/vec.h"
#include "pybatch/latent_attention.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Rotates n elements of x into `to`: the first elements of the pairs, then the second.
template <class T>
void rotate(const T* x, int64_t n, const float* rotary, bool interleaved, float* to) {
  alignas(64) float from[kMaxLatentWidth];
  for (int64_t i = 0; i < n; i += kLanes) store(from + i, load_first(x + i, n - i));
  const int64_t half = n / 2, first = interleaved ? 2 : 1, second = interleaved ? 1 : half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = from[first * i], b = from[first * i + second], cos = rotary[i], sin = rotary[half + i];
    to[i] = a * cos - b * sin;
    to[half + i] = b * cos + a * sin;
  }
}

template <class T>
void write(const LatentWriteParams& p, int64_t token) {
  const LatentCache& cache = p.cache;
  const float* rotary = p.rotary + p.positions[token] * p.rotary_dim;
  const int64_t behind = cache.width - p.latent;  // the latent
  alignas(64) float row[kMaxLatentWidth + kLanes] = {};

  const T* q = static_cast<const T*>(p.q.data) + token * p.q.row_stride + p.head_dim - p.rotary_dim;
  T* out = static_cast<T*>(p.out.data) + token * p.out.row_stride + p.latent;
  for (int64_t h = 0; h < p.heads; ++h, q += p.head_dim, out += cache.width) {
    rotate(q, p.rotary_dim, rotary, p.interleaved, row);
    for (int64_t i = 0; i < behind; i += kLanes) store_first(out + i, load(row + i), behind - i);
  }

  const int64_t slot = p.slots[token];
  if (slot < 0) return;
  const T* kv = static_cast<const T*>(p.kv.data) + token * p.kv.row_stride;
  alignas(64) T normed[kMaxLatentWidth];
  rms_norm_row(kv, static_cast<const T*>(p.norm), p.norm_eps, normed, p.latent);
  for (int64_t i = 0; i < p.latent; i += kLanes) store(row + i, load_first(normed + i, p.latent - i));
  for (int64_t i = p.latent; i < cache.width; ++i) row[i] = 0;
  rotate(kv + p.latent, p.rotary_dim, rotary, p.interleaved, row + p.latent);
  with_float_type(cache.dtype, [&]<class C>(C*) {
    C* to = static_cast<C*>(cache.data) + slot / cache.block_size * cache.block_stride +
            slot % cache.block_size * cache.width;
    for (int64_t i = 0; i < cache.width; i += kLanes) store(to + i, load(row + i));
  });
}

}  // namespace

void latent_write(const LatentWriteParams& p) {
  const int64_t work = p.heads * p.rotary_dim + p.cache.width;
  with_float_type(p.q.dtype, [&]<class T>(T*) {
    parallel_for(p.tokens, 8192 / work + 1, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) write<T>(p, token);
    });
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

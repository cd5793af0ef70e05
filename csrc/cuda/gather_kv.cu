// gather_kv: a block takes one KV head of up to a cache block of kept tokens.
#include "cuda/kernels.h"
#include "cuda/kv_cache.cuh"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kThreads = 256;

// T: an unsigned integer of an element's size.
template <class T>
__global__ void __launch_bounds__(kThreads) gather_kv_kernel(GatherKvParams p) {
  const KvCache& c = p.cache;
  const int64_t h = blockIdx.y, first = blockIdx.x * c.block_size, to = p.destination[blockIdx.x];
  const int size = static_cast<int>(c.block_size), dim = static_cast<int>(c.head_dim);
  const int count = static_cast<int>(p.kept - first < size ? p.kept - first : size);
  const int32_t* indices = p.indices + h * p.kept + first;
  T *k = static_cast<T*>(c.k) + h * dim * size, *v = static_cast<T*>(c.v) + h * size * dim;
  for (int i = threadIdx.x; i < dim * size; i += kThreads) {
    const int token = i % size, d = i / size;
    if (token >= count) continue;
    const int64_t from = p.source[indices[token] / size], offset = indices[token] % size;
    k[to * c.k_block_stride + d * size + token] = k[from * c.k_block_stride + d * size + offset];
  }
  for (int i = threadIdx.x; i < count * dim; i += kThreads) {
    const int token = i / dim, d = i % dim;
    const int64_t from = p.source[indices[token] / size], offset = indices[token] % size;
    v[to * c.v_block_stride + i] = v[from * c.v_block_stride + offset * dim + d];
  }
  if (!c.has_scales()) return;
  for (int token = threadIdx.x; token < count; token += kThreads) {
    const int64_t from = p.source[indices[token] / size], offset = indices[token] % size;
    *scales_of(c, true, to, h, token) = *scales_of(c, true, from, h, offset);
    *scales_of(c, false, to, h, token) = *scales_of(c, false, from, h, offset);
  }
}

}  // namespace

void gather_kv(const GatherKvParams& p, cudaStream_t stream) {
  const dim3 grid(ceil_div(p.kept, p.cache.block_size), p.cache.kv_heads);
  const auto kernel = size_of(p.cache.dtype) == 1   ? gather_kv_kernel<uint8_t>
                      : size_of(p.cache.dtype) == 2 ? gather_kv_kernel<uint16_t>
                                                    : gather_kv_kernel<uint32_t>;
  launch(kernel, grid, dim3(kThreads), 0, stream, p);
}

}  // namespace pybatch::cuda

// gather_kv: a block takes one KV head of up to a cache block of kept tokens.
#include "cuda/kernels.h"
#include "cuda/kv_cache.cuh"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kThreads = 256;

// K and V stand for the bytes of an element, or of the word of an int4 cache; V has those of kRun tokens side by side.
template <class K, class V = K, int kRun = 1>
__global__ void __launch_bounds__(kThreads, 4) gather_kv_kernel(GatherKvParams p) {
  const KvCache& c = p.cache;
  const int64_t h = blockIdx.y, first = blockIdx.x * c.block_size, to = p.destination[blockIdx.x];
  const int size = static_cast<int>(c.block_size), dim = static_cast<int>(c.head_dim);
  const int count = static_cast<int>(p.kept - first < size ? p.kept - first : size);
  const int k_width = kRun == 1 ? dim : dim / 8, v_width = kRun == 1 ? dim : dim / 4;  // of a token
  // Strides are in elements, of int4 in bytes.
  const int64_t k_stride = kRun == 1 ? c.k_block_stride : c.k_block_stride / static_cast<int64_t>(sizeof(K));
  const int64_t v_stride = kRun == 1 ? c.v_block_stride : c.v_block_stride / static_cast<int64_t>(sizeof(V));
  const int32_t* indices = p.indices + h * p.kept + first;
  K* k = static_cast<K*>(c.k) + h * k_width * size;
  V* v = static_cast<V*>(c.v) + h * v_width * size;
  auto value = [&](int64_t block, int token) -> V* {
    return v + block * v_stride + token / kRun * kRun * v_width + token % kRun;
  };
  for (int i = threadIdx.x; i < k_width * size; i += kThreads) {
    const int token = i % size, d = i / size;
    if (token >= count) continue;
    const int64_t from = p.source[indices[token] / size];
    k[to * k_stride + i] = k[from * k_stride + d * size + indices[token] % size];
  }
  for (int i = threadIdx.x; i < count * v_width; i += kThreads) {
    const int token = i / v_width, d = i % v_width * kRun;
    value(to, token)[d] = value(p.source[indices[token] / size], indices[token] % size)[d];
  }
  if (!c.has_scales()) return;
  const int groups = static_cast<int>(c.groups());
  for (int i = threadIdx.x; i < count * groups; i += kThreads) {
    const int token = i % count, group = i / count * size;
    const int64_t from = p.source[indices[token] / size], offset = indices[token] % size;
    scales_of(c, true, to, h, token)[group] = scales_of(c, true, from, h, offset)[group];
    scales_of(c, false, to, h, token)[group] = scales_of(c, false, from, h, offset)[group];
  }
}

}  // namespace

void gather_kv(const GatherKvParams& p, cudaStream_t stream) {
  const dim3 grid(ceil_div(p.kept, p.cache.block_size), p.cache.kv_heads);
  const auto kernel = p.cache.dtype == DType::i4    ? gather_kv_kernel<uint32_t, uint16_t, 4>
                      : size_of(p.cache.dtype) == 1 ? gather_kv_kernel<uint8_t>
                      : size_of(p.cache.dtype) == 2 ? gather_kv_kernel<uint16_t>
                                                    : gather_kv_kernel<uint32_t>;
  launch(kernel, grid, dim3(kThreads), 0, stream, p);
}

}  // namespace pybatch::cuda

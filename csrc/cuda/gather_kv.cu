// gather_kv: a warp moves one row of a KV head through all kept tokens: an element of every key, a group's scales, or
// 32 elements of every value. It reads some tokens before it writes as many: what it reads later lies behind them.
#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/kv_cache.cuh"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kAhead = 8;  // tokens that a lane reads before it writes

// K and V stand for the bytes of an element, or of the word of an int4 cache; V has those of kRun tokens side by side.
template <class K, class V = K, int kRun = 1>
__global__ void __launch_bounds__(kWarps* kWarp, 4) gather_kv_kernel(GatherKvParams p) {
  begin_kernel();
  const KvCache& c = p.cache;
  const int64_t h = blockIdx.y;
  const int size = static_cast<int>(c.block_size), dim = static_cast<int>(c.head_dim), kept = static_cast<int>(p.kept);
  const int k_width = kRun == 1 ? dim : dim / 8, v_width = kRun == 1 ? dim : dim / 4;  // of a token
  const int groups = c.has_scales() ? static_cast<int>(c.groups()) : 0;
  // Strides are in elements, of int4 in bytes.
  const int64_t k_stride = kRun == 1 ? c.k_block_stride : c.k_block_stride / static_cast<int64_t>(sizeof(K));
  const int64_t v_stride = kRun == 1 ? c.v_block_stride : c.v_block_stride / static_cast<int64_t>(sizeof(V));
  const int lane = threadIdx.x % kWarp;
  const int32_t* indices = p.indices + h * p.kept;
  // at(block, offset): the lane's element of a token. Of every `step` tokens before `end` a lane moves one.
  auto move = [&](int step, int first, int end, auto at) {
    for (int begin = 0; begin < kept; begin += step * kAhead) {
      std::remove_pointer_t<decltype(at(0, 0))> x[kAhead] = {};
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int token = begin + i * step + first;
        if (token < end) x[i] = *at(p.source[indices[token] / size], indices[token] % size);
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int token = begin + i * step + first;
        if (token < end) *at(p.destination[token / size], token % size) = x[i];
      }
    }
  };
  int row = blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (row < k_width) {
    K* k = static_cast<K*>(c.k) + (h * k_width + row) * size;
    return move(kWarp, lane, kept, [&](int64_t block, int token) { return k + block * k_stride + token; });
  }
  row -= k_width;
  if (row < 2 * groups) {
    const bool of_keys = row < groups;
    const int group = row % groups * size;
    return move(kWarp, lane, kept,
                [&](int64_t block, int token) { return scales_of(c, of_keys, block, h, token) + group; });
  }
  const int d = (row - 2 * groups) * kWarp + lane;
  V* v = static_cast<V*>(c.v) + h * v_width * size + d * kRun;
  move(1, 0, d < v_width ? kept : 0,
       [&](int64_t block, int token) { return v + block * v_stride + token / kRun * kRun * v_width + token % kRun; });
}

}  // namespace

void gather_kv(const GatherKvParams& p, cudaStream_t stream) {
  const KvCache& c = p.cache;
  const int64_t packed = c.dtype == DType::i4, groups = c.has_scales() ? c.groups() : 0;
  const int64_t rows = c.head_dim / (packed ? 8 : 1) + 2 * groups + ceil_div(c.head_dim / (packed ? 4 : 1), kWarp);
  const dim3 grid(ceil_div(rows, kWarps), c.kv_heads);
  const auto kernel = c.dtype == DType::i4    ? gather_kv_kernel<uint32_t, uint16_t, 4>
                      : size_of(c.dtype) == 1 ? gather_kv_kernel<uint8_t>
                      : size_of(c.dtype) == 2 ? gather_kv_kernel<uint16_t>
                                              : gather_kv_kernel<uint32_t>;
  launch(kernel, grid, dim3(kWarps * kWarp), 0, stream, p);
}

}  // namespace pybatch::cuda

// rotate_keys: a warp takes one token and head through shared memory; the warps of a block have neighbouring tokens,
// whose elements are in the same sectors.
#include "cuda/kernels.h"
#include "cuda/kv_cache.cuh"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kWarps = 8;  // divides every block size

__global__ void __launch_bounds__(kWarps* kWarp, 4) rotate_keys_kernel(RotateKeysParams p) {
  begin_kernel();
  const KvCache& c = p.cache;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, dim = static_cast<int>(c.head_dim);
  const int64_t block = p.blocks[blockIdx.x], h = blockIdx.y, offset = blockIdx.z * kWarps + warp;
  float* head = dynamic_shared<float>() + warp * kMaxHeadDim;
  auto shift = [&](float by) {
    if (p.key_offset == nullptr) return;
    for (int d = lane; d < dim; d += kWarp) head[d] += by * p.key_offset[h * dim + d];
    __syncwarp();
  };
  for (int d = lane; d < dim; d += kWarp) {
    head[d] = key_code(c, block, h, offset, d) * key_scale(c, block, h, offset, d / scaled_together(c));
  }
  __syncwarp();
  shift(1.0f);
  rotate(head, p.rotary + blockIdx.x * p.rotary_dim, static_cast<int>(p.rotary_dim), false, lane);
  shift(-1.0f);
  write_head(c, true, head, block, h, offset, lane);
}

}  // namespace

void rotate_keys(const RotateKeysParams& p, cudaStream_t stream) {
  const dim3 grid(p.count, p.cache.kv_heads, p.cache.block_size / kWarps);
  launch(rotate_keys_kernel, grid, dim3(kWarps * kWarp), kWarps * kMaxHeadDim * sizeof(float), stream, p);
}

}  // namespace pybatch::cuda

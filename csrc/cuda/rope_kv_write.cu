// rope_kv_write: a warp takes one head of one token through shared memory: norm, rotation, then q in place or the
// cache.
#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/kv_cache.cuh"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kWarps = 4;

// The norm of one head in shared memory, in place; RMSNorm rounds before the weight, and both after it, as the models
// were trained.
template <class T>
__device__ __forceinline__ void normalise(float* head, int dim, const T* weight, float eps, bool layer_norm, int lane) {
  if (layer_norm) {
    float sum = 0.0f;
    for (int i = lane; i < dim; i += kWarp) sum += head[i];
    const float mean = warp_reduce<Add>(sum) / static_cast<float>(dim);
    for (int i = lane; i < dim; i += kWarp) head[i] -= mean;
  }
  float squares = 0.0f;
  for (int i = lane; i < dim; i += kWarp) squares = fmaf(head[i], head[i], squares);
  const float inverse = 1.0f / sqrtf(warp_reduce<Add>(squares) / static_cast<float>(dim) + eps);
  for (int i = lane; i < dim; i += kWarp) {
    const float y = head[i] * inverse;
    head[i] = to_float(from_float<T>((layer_norm ? y : to_float(from_float<T>(y))) * to_float(weight[i])));
  }
  __syncwarp();
}

template <class T>
__global__ void __launch_bounds__(kWarps* kWarp) rope_kv_write_kernel(RopeKvWriteParams p) {
  begin_kernel();
  const KvCache& cache = p.cache;
  const int64_t token = blockIdx.x;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t item = static_cast<int64_t>(blockIdx.y) * kWarps + warp;  // q heads, then k heads, then v heads
  if (item >= p.heads + 2 * cache.kv_heads) return;
  const bool is_q = item < p.heads, is_v = item >= p.heads + cache.kv_heads;
  const int64_t h = is_q ? item : (item - p.heads) % cache.kv_heads;
  const int dim = static_cast<int>(cache.head_dim);
  const int64_t slot = p.slot(token);
  if (!is_q && slot < 0) return;

  float* head = dynamic_shared<float>() + warp * kMaxHeadDim;
  T* q = static_cast<T*>(p.q.data) + token * p.q.row_stride + h * dim;
  const ConstMatrix& from = is_v ? p.v : p.k;
  const T* x = is_q ? q : static_cast<const T*>(from.data) + token * from.row_stride + h * dim;
  for (int i = lane; i < dim; i += kWarp) head[i] = to_float(x[i]);
  __syncwarp();
  if (is_v && p.v_norm_weight != nullptr) {
    normalise(head, dim, static_cast<const T*>(p.v_norm_weight), p.norm_eps, p.layer_norm, lane);
  }
  if (!is_v) {
    const T* norm = static_cast<const T*>(is_q ? p.q_norm_weight : p.k_norm_weight);
    if (norm != nullptr) norm += h * (is_q ? p.q_norm_stride : p.k_norm_stride);
    if (norm != nullptr && !p.norm_last) normalise(head, dim, norm, p.norm_eps, p.layer_norm, lane);
    const float* cos_sin = p.rotary + p.positions[token] * p.rotary_dim;
    rotate(head, cos_sin, static_cast<int>(p.rotary_dim), p.interleaved, lane);
    if (norm != nullptr && p.norm_last) normalise(head, dim, norm, p.norm_eps, p.layer_norm, lane);
  }
  if (is_q) {
    const float scale = p.query_scale == nullptr ? 1.0f : p.query_scale[p.positions[token]];
    const float* divisor = p.key_divisor == nullptr ? nullptr : p.key_divisor + h / (p.heads / cache.kv_heads) * dim;
    for (int i = lane; i < dim; i += kWarp) {
      q[i] = from_float<T>(head[i] * scale * (divisor == nullptr ? 1.0f : divisor[i]));
    }
    return;
  }
  if (!is_v && (p.key_divisor != nullptr || p.key_offset != nullptr)) {
    for (int i = lane; i < dim; i += kWarp) {
      const float x = p.key_divisor == nullptr ? head[i] : head[i] / p.key_divisor[h * dim + i];
      head[i] = p.key_offset == nullptr ? x : x - p.key_offset[h * dim + i];
    }
    __syncwarp();
  }

  write_head(cache, !is_v, head, slot / cache.block_size, h, slot % cache.block_size, lane);
}

}  // namespace

void rope_kv_write(const RopeKvWriteParams& p, cudaStream_t stream) {
  const dim3 grid(p.tokens, ceil_div(p.heads + 2 * p.cache.kv_heads, kWarps));
  with_float_type(p.q.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(rope_kv_write_kernel<T>, grid, dim3(kWarps * kWarp), kWarps * kMaxHeadDim * sizeof(float), stream, p);
  });
}

}  // namespace pybatch::cuda

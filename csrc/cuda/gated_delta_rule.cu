// gated_delta_rule: a block holds 32 columns of a value head's state in registers, each warp a quarter of their rows,
// and takes a sequence's tokens one after another.
#include "cuda/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRows = kMostKeyDim / kWarps;  // of a thread at most

struct Shared {
  float q[kMostKeyDim], k[kMostKeyDim];
  float decay, beta;
  float of_keys[kWarps][kWarp], of_queries[kWarps][kWarp];  // each warp's part of a sum over rows
};

// A warp writes a head of queries or keys at unit length, times `scale`.
template <class T>
__device__ __forceinline__ void unit(const T* x, int dim, float scale, float* to) {
  const int lane = threadIdx.x % kWarp;
  float squares = 0.0f;
  for (int i = lane; i < dim; i += kWarp) squares = fmaf(to_float(x[i]), to_float(x[i]), squares);
  const float factor = scale / sqrtf(warp_reduce<Add>(squares) + kUnitEps);
  for (int i = lane; i < dim; i += kWarp) to[i] = to_float(x[i]) * factor;
}

__device__ __forceinline__ float total(const float (&parts)[kWarps][kWarp], int column) {
  return (parts[0][column] + parts[1][column]) + (parts[2][column] + parts[3][column]);
}

// kEach: rows of a thread at most, so that all stay in registers.
template <class T, int kEach>
__global__ void __launch_bounds__(kThreads) gated_delta_rule_kernel(GatedDeltaParams p) {
  begin_kernel();
  Shared& shared = *dynamic_shared<Shared>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane, head = blockIdx.y, s = blockIdx.z;
  const int64_t begin = p.batch.query_start[s], end = p.batch.query_start[s + 1];
  const int64_t source = p.batch.source[s], destination = p.batch.destination[s];
  const int dim = static_cast<int>(p.key_dim), each = static_cast<int>(ceil_div(dim, kWarps)), first = warp * each;
  const bool stored = column < p.state_width(), valued = column < p.value_dim;
  T* out = static_cast<T*>(p.out.data) + head * p.value_dim + column;
  if (destination < 0) {
    for (int64_t t = begin + warp; t < end && valued; t += kWarps) out[t * p.out.row_stride] = from_float<T>(0.0f);
    return;
  }
  auto state = [&](int64_t slot, int i) {
    return p.state + slot * p.state_stride + (head * dim + first + i) * p.state_width() + column;
  };
  float rows[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const bool mine = i < each && first + i < dim && stored;
    rows[i] = mine && source >= 0 ? *state(source, i) : 0.0f;
  }
  const int64_t key_head = head / (p.value_heads / p.key_heads), keys = p.key_heads * dim;
  for (int64_t t = begin; t < end; ++t) {
    const T* x = static_cast<const T*>(p.qkv.data) + t * p.qkv.row_stride;
    if (warp == 0) unit(x + key_head * dim, dim, 1.0f / sqrtf(static_cast<float>(dim)), shared.q);
    if (warp == 1) unit(x + keys + key_head * dim, dim, 1.0f, shared.k);
    if (warp == 2 && lane == 0) {
      const float a = to_float(static_cast<const T*>(p.a.data)[t * p.a.row_stride + head]) + p.dt_bias[head];
      const float b = to_float(static_cast<const T*>(p.b.data)[t * p.b.row_stride + head]);
      shared.decay = expf(-p.rate[head] * (fmaxf(a, 0.0f) + log1pf(expf(-fabsf(a)))));
      shared.beta = 1.0f / (1.0f + expf(-b));
    }
    __syncthreads();
    const float decay = shared.decay;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i < each && first + i < dim) sum = fmaf(rows[i], shared.k[first + i], sum);
    }
    shared.of_keys[warp][lane] = sum;
    __syncthreads();
    const float v = valued ? to_float(x[2 * keys + head * p.value_dim + column]) : 0.0f;
    const float delta = (v - total(shared.of_keys, lane) * decay) * shared.beta;
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i < each && first + i < dim) {
        rows[i] = fmaf(shared.k[first + i], delta, rows[i] * decay);
        sum = fmaf(rows[i], shared.q[first + i], sum);
      }
    }
    shared.of_queries[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && valued) out[t * p.out.row_stride] = from_float<T>(total(shared.of_queries, lane));
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (i < each && first + i < dim && stored) *state(destination, i) = rows[i];
  }
}

}  // namespace

void gated_delta_rule(const GatedDeltaParams& p, cudaStream_t stream) {
  const dim3 grid(ceil_div(p.state_width(), kWarp), p.value_heads, p.batch.sequences);
  with_float_type(p.qkv.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto kernel =
        p.key_dim <= kMostKeyDim / 2 ? gated_delta_rule_kernel<T, kRows / 2> : gated_delta_rule_kernel<T, kRows>;
    launch(kernel, grid, dim3(kThreads), sizeof(Shared), stream, p);
  });
}

}  // namespace pybatch::cuda

// What a mixture of experts has beside its matmuls: routing, and the sum over a token's experts.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/logits.cuh"
#include "cuda/matmul_epilogue.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kRouteWarps = 4, kSortThreads = 128, kSumThreads = 128;
constexpr uint64_t kAny = ~uint64_t{0};

// The largest key below `limit` of those of x[0 .. n); all lanes of a warp get it.
__device__ __forceinline__ uint64_t next_key(const float* x, int64_t n, uint64_t limit) {
  uint64_t largest = 0;
  for (int64_t i = threadIdx.x % kWarp; i < n; i += kWarp) {
    const uint64_t key = key_of(x[i], i);
    if (key < limit && key > largest) largest = key;
  }
  return warp_reduce<Largest>(largest);
}

// A warp a token.
__global__ void __launch_bounds__(kRouteWarps* kWarp) route_kernel(RouteParams p) {
  begin_kernel();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kRouteWarps + warp, n = p.experts;
  if (token >= p.tokens) return;
  float* scores = dynamic_shared<float>() + warp * 3 * n;
  float *choice = scores + n, *groups = choice + n;
  auto for_mine = [&](const auto& f) {
    for (int64_t i = lane; i < n; i += kWarp) f(i);
  };

  const float* logits = p.logits + token * p.row_stride;
  float largest = -FLT_MAX, sum = 0.0f;
  for_mine([&](int64_t i) { largest = fmaxf(largest, logits[i]); });
  largest = warp_reduce<Largest>(largest);
  for_mine([&](int64_t i) { sum += expf(logits[i] - largest); });
  sum = warp_reduce<Add>(sum);
  for_mine([&](int64_t i) {
    const float x = logits[i];
    scores[i] = p.scoring == Scoring::softmax   ? expf(x - largest) / sum
                : p.scoring == Scoring::sigmoid ? 1.0f / (1.0f + expf(-x))
                                                : x;
    choice[i] = fmaxf(scores[i] + (p.bias != nullptr ? p.bias[i] : 0.0f), -FLT_MAX);  // of NaN and y it is y
  });
  __syncwarp();

  if (p.top_groups < p.groups) {
    const int64_t size = n / p.groups;
    for (int64_t g = 0; g < p.groups; ++g) {
      float best = 0.0f;
      uint64_t key = kAny;
      for (int64_t i = 0; i < p.group_best; ++i) {
        key = next_key(choice + g * size, size, key);
        best += choice[g * size + id_of(key)];
      }
      if (lane == 0) groups[g] = fmaxf(best, -FLT_MAX);
    }
    __syncwarp();
    uint64_t key = kAny;
    for (int64_t i = 0; i < p.top_groups; ++i) key = next_key(groups, p.groups, key);
    for_mine([&](int64_t i) {
      if (key_of(groups[i / size], i / size) < key) choice[i] = -INFINITY;
    });
    __syncwarp();
  }

  int32_t* ids = p.ids + token * p.top_k;
  float* weights = p.weights + token * p.top_k;
  uint64_t key = kAny;
  for (int64_t count = 0; count < p.top_k; ++count) {
    key = next_key(choice, n, key);
    if (lane != 0) continue;
    const auto id = static_cast<int32_t>(id_of(key));
    int64_t at = count;
    for (; at > 0 && ids[at - 1] > id; --at) ids[at] = ids[at - 1];
    ids[at] = id;
  }
  if (lane != 0) return;
  float most = -FLT_MAX, divisor = 0.0f;
  for (int64_t i = 0; i < p.top_k; ++i) most = fmaxf(most, scores[ids[i]]);
  for (int64_t i = 0; i < p.top_k; ++i) {
    weights[i] = p.scoring == Scoring::top_k_softmax ? expf(scores[ids[i]] - most) : scores[ids[i]];
    divisor += weights[i];
  }
  if (p.normalize) divisor += 1e-20f;
  if (!p.normalize && p.scoring != Scoring::top_k_softmax) divisor = 1.0f;
  for (int64_t i = 0; i < p.top_k; ++i) {
    weights[i] = weights[i] / divisor * p.scale * (p.expert_scale != nullptr ? p.expert_scale[ids[i]] : 1.0f);
  }
}

// A thread an expert, which looks for its tokens by itself; the last finds the end.
__global__ void __launch_bounds__(kSortThreads) sort_kernel(RouteParams p) {
  begin_kernel();
  const int64_t expert = static_cast<int64_t>(blockIdx.x) * kSortThreads + threadIdx.x, rows = p.tokens * p.top_k;
  if (expert > p.experts) return;
  int32_t at = 0;
  for (int64_t i = 0; i < rows; ++i) at += p.ids[i] < expert;
  p.starts[expert] = at;
  for (int64_t i = 0; i < rows; ++i) {
    if (p.ids[i] != expert) continue;
    p.order[at] = static_cast<int32_t>(i / p.top_k);
    p.places[i] = at++;
  }
}

__global__ void __launch_bounds__(kSumThreads) sum_kernel(MatmulParams p, const void* products) {
  begin_kernel();
  const int64_t token = blockIdx.x, column = static_cast<int64_t>(blockIdx.y) * kSumThreads + threadIdx.x;
  if (column >= p.width) return;
  const DType type = p.out.dtype;
  float sum = 0.0f;
  for (int64_t j = 0; j < p.experts.top_k; ++j) {
    const int64_t i = token * p.experts.top_k + j, at = p.experts.places[i] * p.width + column;
    sum = fmaf(p.experts.weights[i], load_as(type, products, at), sum);
  }
  write_sum(p, type, token, column, sum, load_residual(p, type, token, column));
}

}  // namespace

void route_experts(const RouteParams& p, cudaStream_t stream) {
  const size_t shared = static_cast<size_t>(kRouteWarps * 3 * p.experts) * sizeof(float);
  launch(route_kernel, dim3(ceil_div(p.tokens, kRouteWarps)), dim3(kRouteWarps * kWarp), shared, stream, p);
  launch(sort_kernel, dim3(ceil_div(p.experts + 1, kSortThreads)), dim3(kSortThreads), 0, stream, p);
}

void sum_over_experts(const MatmulParams& p, const void* products, cudaStream_t stream) {
  const dim3 grid(p.m / p.experts.top_k, ceil_div(p.width, kSumThreads));
  launch(sum_kernel, grid, dim3(kSumThreads), 0, stream, p, products);
}

}  // namespace pybatch::cuda

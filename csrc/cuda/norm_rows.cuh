// Norm of a block's row. The row is read again for each pass, from the cache.
#pragma once

#include <algorithm>

#include "cuda/common.cuh"

namespace pybatch::cuda {

constexpr int kMaxRowThreads = 512;

// How many threads share a row. That sets the order of its sums, so it depends on the width alone.
inline int row_threads(int64_t width) {
  const int64_t threads = ceil_div(ceil_div(width, kRun), kWarp) * kWarp;
  return static_cast<int>(std::clamp<int64_t>(threads, kWarp, kMaxRowThreads));
}

// Shared memory for the block's reductions.
constexpr size_t kRowScratchBytes = kMaxRowThreads / kWarp * sizeof(float);

// Calls f(column, n, values) on each run of the row that this thread owns; values beyond n are zeros.
template <class T, class F>
__device__ __forceinline__ void for_runs(const T* row, int64_t width, const F& f) {
  for (int64_t column = threadIdx.x * kRun; column < width; column += blockDim.x * kRun) {
    const int64_t n = width - column < kRun ? width - column : kRun;
    float v[kRun];
    load_run(row + column, n, v);
    f(column, n, v);
  }
}

// 1 / the root of the mean square distance from `mean`.
template <class T>
__device__ __forceinline__ float inverse_deviation(const T* row, int64_t width, float mean, float eps, float* scratch) {
  float squares = 0.0f;
  for_runs(row, width, [&](int64_t, int64_t n, float (&v)[kRun]) {
    for (int i = 0; i < kRun; ++i) {
      const float centred = i < n ? v[i] - mean : 0.0f;
      squares = fmaf(centred, centred, squares);
    }
  });
  return 1.0f / sqrtf(block_reduce<Add>(squares, scratch) / static_cast<float>(width) + eps);
}

// RMSNorm of one element, in fp32. It rounds to T before the weight, as the models were trained.
template <class T>
__device__ __forceinline__ float rms_normed(float x, float inverse, float weight) {
  return to_float(from_float<T>(x * inverse)) * weight;
}

}  // namespace pybatch::cuda

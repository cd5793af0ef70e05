// rms_norm and layer_norm: one block a row. The row is read again for each pass; it is in the cache by then.
#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kMaxThreads = 512;

// Calls f(column, n, values) on each run of the row that this thread owns.
template <class T, class F>
__device__ __forceinline__ void for_runs(const T* row, int64_t width, const F& f) {
  for (int64_t column = threadIdx.x * kRun; column < width; column += blockDim.x * kRun) {
    const int64_t n = width - column < kRun ? width - column : kRun;
    float v[kRun];
    load_run(row + column, n, v);
    f(column, n, v);
  }
}

// residual += x, rounded to T. The thread that writes a run is the one that reads it later.
template <class T>
__device__ __forceinline__ void add_to_residual(const T* x, T* residual, int64_t width) {
  for_runs(x, width, [&](int64_t column, int64_t n, float (&v)[kRun]) {
    float r[kRun];
    load_run(residual + column, n, r);
    for (int i = 0; i < kRun; ++i) r[i] += v[i];
    store_run(residual + column, n, r);
  });
}

template <class T, bool kLayerNorm>
__global__ void __launch_bounds__(kMaxThreads) norm_kernel(NormParams p) {
  float* scratch = dynamic_shared<float>();
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride;
  if (p.residual.data != nullptr) {
    T* residual = static_cast<T*>(p.residual.data) + row * p.residual.row_stride;
    add_to_residual(x, residual, p.width);
    x = residual;
  }
  const float width = static_cast<float>(p.width);
  float mean = 0.0f;
  if (kLayerNorm) {
    float sum = 0.0f;
    for_runs(x, p.width, [&](int64_t, int64_t, float (&v)[kRun]) {
      for (int i = 0; i < kRun; ++i) sum += v[i];
    });
    mean = block_sum(sum, scratch) / width;
  }
  float squares = 0.0f;
  for_runs(x, p.width, [&](int64_t, int64_t n, float (&v)[kRun]) {
    for (int i = 0; i < kRun; ++i) {
      const float centred = i < n ? v[i] - mean : 0.0f;
      squares = fmaf(centred, centred, squares);
    }
  });
  const float inverse = 1.0f / sqrtf(block_sum(squares, scratch) / width + p.eps);

  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  T* out = static_cast<T*>(p.out.data) + row * p.out.row_stride;
  for_runs(x, p.width, [&](int64_t column, int64_t n, float (&v)[kRun]) {
    float w[kRun], b[kRun] = {};
    load_run(weight + column, n, w);
    if (kLayerNorm && bias != nullptr) load_run(bias + column, n, b);
    for (int i = 0; i < kRun; ++i) {
      const float normalised = (v[i] - mean) * inverse;
      // RMSNorm rounds before the weight, as the models were trained.
      v[i] = kLayerNorm ? fmaf(normalised, w[i], b[i]) : to_float(from_float<T>(normalised)) * w[i];
    }
    store_run(out + column, n, v);
  });
}

template <bool kLayerNorm>
void norm(const NormParams& p, cudaStream_t stream) {
  // The number of threads sets the order of the sums: it depends on the width alone.
  const int64_t warps = ceil_div(ceil_div(p.width, kRun), kWarp);
  const int threads = static_cast<int>(warps * kWarp < kMaxThreads ? warps * kWarp : kMaxThreads);
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(norm_kernel<T, kLayerNorm>, dim3(p.rows), dim3(threads), kMaxThreads / kWarp * sizeof(float), stream, p);
  });
}

}  // namespace

void rms_norm(const NormParams& p, cudaStream_t stream) { norm<false>(p, stream); }
void layer_norm(const NormParams& p, cudaStream_t stream) { norm<true>(p, stream); }

}  // namespace pybatch::cuda

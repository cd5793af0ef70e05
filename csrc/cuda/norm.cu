// rms_norm, layer_norm and add_normed: one block a row; gated_rms_norm: one a head of a row.
#include "cuda/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/norm_rows.cuh"

namespace pybatch::cuda {
namespace {

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
__global__ void __launch_bounds__(kMaxRowThreads) norm_kernel(NormParams p) {
  begin_kernel();
  float* scratch = dynamic_shared<float>();
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride;
  if (p.residual.data != nullptr) {
    T* residual = static_cast<T*>(p.residual.data) + row * p.residual.row_stride;
    add_to_residual(x, residual, p.width);
    x = residual;
  }
  float mean = 0.0f;
  if (kLayerNorm) {
    float sum = 0.0f;
    for_runs(x, p.width, [&](int64_t, int64_t, float (&v)[kRun]) {
      for (int i = 0; i < kRun; ++i) sum += v[i];
    });
    mean = block_reduce<Add>(sum, scratch) / static_cast<float>(p.width);
  }
  const float inverse = inverse_deviation(x, p.width, mean, p.eps, scratch);

  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  T* out = static_cast<T*>(p.out.data) + row * p.out.row_stride;
  for_runs(x, p.width, [&](int64_t column, int64_t n, float (&v)[kRun]) {
    float w[kRun], b[kRun] = {};
    load_run(weight + column, n, w);
    if (kLayerNorm && bias != nullptr) load_run(bias + column, n, b);
    for (int i = 0; i < kRun; ++i) {
      v[i] = kLayerNorm ? fmaf((v[i] - mean) * inverse, w[i], b[i]) : rms_normed<T>(v[i], inverse, w[i]);
    }
    store_run(out + column, n, v);
  });
}

template <class T>
__global__ void __launch_bounds__(kMaxRowThreads) add_normed_kernel(AddNormedParams p) {
  begin_kernel();
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride;
  const T* weight = static_cast<const T*>(p.weight);
  T* residual = static_cast<T*>(p.residual.data) + row * p.residual.row_stride;
  float inverse = 1.0f;
  if (weight != nullptr) inverse = inverse_deviation(x, p.width, 0.0f, p.eps, dynamic_shared<float>());
  for_runs(x, p.width, [&](int64_t column, int64_t n, float (&v)[kRun]) {
    float w[kRun] = {}, r[kRun];
    if (weight != nullptr) load_run(weight + column, n, w);
    load_run(residual + column, n, r);
    for (int i = 0; i < kRun; ++i) {
      if (weight != nullptr) v[i] = to_float(from_float<T>(rms_normed<T>(v[i], inverse, w[i])));
      r[i] = to_float(from_float<T>(r[i] + to_float(from_float<T>(v[i] * p.factor)))) * p.scale;
    }
    store_run(residual + column, n, r);
  });
}

template <bool kLayerNorm>
void norm(const NormParams& p, cudaStream_t stream) {
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(norm_kernel<T, kLayerNorm>, dim3(p.rows), dim3(row_threads(p.width)), kRowScratchBytes, stream, p);
  });
}

template <class T>
__global__ void __launch_bounds__(kMaxRowThreads) gated_norm_kernel(GatedNormParams p) {
  begin_kernel();
  float* scratch = dynamic_shared<float>();
  const int64_t row = blockIdx.x, first = blockIdx.y * p.width;
  const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride + first;
  const T* gate = static_cast<const T*>(p.gate.data) + row * p.gate.row_stride + first;
  T* out = static_cast<T*>(p.out.data) + row * p.out.row_stride + first;
  const float inverse = inverse_deviation(x, p.width, 0.0f, p.eps, scratch);
  for_runs(x, p.width, [&](int64_t column, int64_t n, float (&v)[kRun]) {
    float w[kRun], g[kRun];
    load_run(static_cast<const T*>(p.weight) + column, n, w);
    load_run(gate + column, n, g);
    for (int i = 0; i < kRun; ++i) {
      v[i] = to_float(from_float<T>(rms_normed<T>(v[i], inverse, w[i]))) * Silu::apply(g[i]);
    }
    store_run(out + column, n, v);
  });
}

}  // namespace

void gated_rms_norm(const GatedNormParams& p, cudaStream_t stream) {
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const dim3 grid(p.rows, p.heads);
    launch(gated_norm_kernel<T>, grid, dim3(row_threads(p.width)), kRowScratchBytes, stream, p);
  });
}

void rms_norm(const NormParams& p, cudaStream_t stream) { norm<false>(p, stream); }
void layer_norm(const NormParams& p, cudaStream_t stream) { norm<true>(p, stream); }

void add_normed(const AddNormedParams& p, cudaStream_t stream) {
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(add_normed_kernel<T>, dim3(p.rows), dim3(row_threads(p.width)), kRowScratchBytes, stream, p);
  });
}

}  // namespace pybatch::cuda

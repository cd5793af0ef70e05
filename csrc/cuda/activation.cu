// The activations of MLPs, gated and not, and gates by sigmoids: a thread a run of eight columns.
#include "cuda/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kThreads = 128;

template <class T, class Activation>
__global__ void __launch_bounds__(kThreads) activation_kernel(ActivationParams p) {
  const int64_t row = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kRun;
  if (column >= p.width) return;
  const int64_t n = p.width - column < kRun ? p.width - column : kRun;
  float x[kRun];
  load_run(static_cast<const T*>(p.x.data) + row * p.x.row_stride + column, n, x);
  for (int i = 0; i < kRun; ++i) x[i] = Activation::apply(x[i]);
  store_run(static_cast<T*>(p.out.data) + row * p.out.row_stride + column, n, x);
}

template <class T, class Activation>
__global__ void __launch_bounds__(kThreads) gated_activation_kernel(GatedActivationParams p) {
  const int64_t row = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kRun;
  if (column >= p.width) return;
  const int64_t n = p.width - column < kRun ? p.width - column : kRun;
  const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride + column;
  float gate[kRun], up[kRun];
  load_run(x, n, gate);
  load_run(x + p.width, n, up);
  for (int i = 0; i < kRun; ++i) up[i] *= Activation::apply(gate[i]);
  store_run(static_cast<T*>(p.out.data) + row * p.out.row_stride + column, n, up);
}

template <class T>
__global__ void __launch_bounds__(kThreads) sigmoid_mul_kernel(SigmoidMulParams p) {
  const int64_t row = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kRun;
  if (column >= p.width) return;
  const int64_t n = p.width - column < kRun ? p.width - column : kRun;
  float x[kRun], gate[kRun];
  load_run(static_cast<const T*>(p.x.data) + row * p.x.row_stride + column, n, x);
  load_run(static_cast<const T*>(p.gate.data) + row * p.gate.row_stride + column, n, gate);
  for (int i = 0; i < kRun; ++i) x[i] = times_sigmoid(x[i], gate[i]);
  store_run(static_cast<T*>(p.out.data) + row * p.out.row_stride + column, n, x);
}

template <class Activation>
void activation(const ActivationParams& p, cudaStream_t stream) {
  const dim3 grid(p.rows, ceil_div(p.width, kThreads * kRun));
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(activation_kernel<T, Activation>, grid, dim3(kThreads), 0, stream, p);
  });
}

template <class Activation>
void gated_activation(const GatedActivationParams& p, cudaStream_t stream) {
  const dim3 grid(p.rows, ceil_div(p.width, kThreads * kRun));
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(gated_activation_kernel<T, Activation>, grid, dim3(kThreads), 0, stream, p);
  });
}

}  // namespace

void gelu(const ActivationParams& p, cudaStream_t stream) { activation<Gelu>(p, stream); }
void gelu_tanh(const ActivationParams& p, cudaStream_t stream) { activation<GeluTanh>(p, stream); }
void relu2(const ActivationParams& p, cudaStream_t stream) { activation<Relu2>(p, stream); }
void sigmoid_mul(const SigmoidMulParams& p, cudaStream_t stream) {
  const dim3 grid(p.rows, ceil_div(p.width, kThreads * kRun));
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(sigmoid_mul_kernel<T>, grid, dim3(kThreads), 0, stream, p);
  });
}

void silu_mul(const GatedActivationParams& p, cudaStream_t stream) { gated_activation<Silu>(p, stream); }
void gelu_tanh_mul(const GatedActivationParams& p, cudaStream_t stream) { gated_activation<GeluTanh>(p, stream); }

}  // namespace pybatch::cuda

// The activations of MLPs, gated and not, and gates by sigmoids: a thread a run of eight columns.
#include "cuda/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kThreads = 128;

template <class Activation>
__device__ __forceinline__ float activated(const ActivationParams&, float x) {
  return Activation::apply(x);
}

template <class>
__device__ __forceinline__ float activated(const XieluParams& p, float x) {
  if (x > 0.0f) return fmaf(p.alpha_p * x, x, p.beta * x);
  return fmaf(p.alpha_n, expm1f(x > p.eps ? p.eps : x) - x, p.beta * x);
}

template <class T, class Activation, class Params>
__global__ void __launch_bounds__(kThreads) activation_kernel(Params p) {
  begin_kernel();
  const int64_t row = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kRun;
  if (column >= p.width) return;
  const int64_t n = p.width - column < kRun ? p.width - column : kRun;
  float x[kRun];
  load_run(static_cast<const T*>(p.x.data) + row * p.x.row_stride + column, n, x);
  for (int i = 0; i < kRun; ++i) x[i] = activated<Activation>(p, x[i]);
  store_run(static_cast<T*>(p.out.data) + row * p.out.row_stride + column, n, x);
}

template <class Activation>
__device__ __forceinline__ float multiplied(const GatedActivationParams&, float gate, float up) {
  return up * Activation::apply(gate);
}

template <class>
__device__ __forceinline__ float multiplied(const ClampedSwigluParams& p, float gate, float up) {
  gate = gate > p.limit ? p.limit : gate;  // NaN stays
  up = up > p.limit ? p.limit : up < -p.limit ? -p.limit : up;
  return times_sigmoid(gate, p.alpha * gate) * (up + 1.0f);
}

template <class T, class Activation, class Params>
__global__ void __launch_bounds__(kThreads) gated_activation_kernel(Params p) {
  begin_kernel();
  const int64_t row = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kRun;
  if (column >= p.width) return;
  const int64_t n = p.width - column < kRun ? p.width - column : kRun;
  const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride + column;
  float gate[kRun], up[kRun];
  load_run(x, n, gate);
  load_run(x + p.width, n, up);
  for (int i = 0; i < kRun; ++i) up[i] = multiplied<Activation>(p, gate[i], up[i]);
  store_run(static_cast<T*>(p.out.data) + row * p.out.row_stride + column, n, up);
}

struct SigmoidGate {
  static __device__ __forceinline__ float apply(float x, float gate) { return times_sigmoid(x, gate); }
};
struct GeluTanhGate {
  static __device__ __forceinline__ float apply(float x, float gate) { return x * GeluTanh::apply(gate); }
};

template <class T, class Gate>
__global__ void __launch_bounds__(kThreads) gate_kernel(GateParams p) {
  begin_kernel();
  const int64_t row = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kRun;
  if (column >= p.width) return;
  const int64_t n = p.width - column < kRun ? p.width - column : kRun;
  float x[kRun], gate[kRun];
  load_run(static_cast<const T*>(p.x.data) + row * p.x.row_stride + column, n, x);
  load_run(static_cast<const T*>(p.gate.data) + row * p.gate.row_stride + column, n, gate);
  for (int i = 0; i < kRun; ++i) x[i] = Gate::apply(x[i], gate[i]);
  store_run(static_cast<T*>(p.out.data) + row * p.out.row_stride + column, n, x);
}

template <class Activation, class Params>
void activation(const Params& p, cudaStream_t stream) {
  const dim3 grid(p.rows, ceil_div(p.width, kThreads * kRun));
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(activation_kernel<T, Activation, Params>, grid, dim3(kThreads), 0, stream, p);
  });
}

template <class Activation, class Params>
void gated_activation(const Params& p, cudaStream_t stream) {
  const dim3 grid(p.rows, ceil_div(p.width, kThreads * kRun));
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(gated_activation_kernel<T, Activation, Params>, grid, dim3(kThreads), 0, stream, p);
  });
}

template <class Gate>
void gate(const GateParams& p, cudaStream_t stream) {
  const dim3 grid(p.rows, ceil_div(p.width, kThreads * kRun));
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(gate_kernel<T, Gate>, grid, dim3(kThreads), 0, stream, p);
  });
}

}  // namespace

void gelu(const ActivationParams& p, cudaStream_t stream) { activation<Gelu>(p, stream); }
void gelu_tanh(const ActivationParams& p, cudaStream_t stream) { activation<GeluTanh>(p, stream); }
void relu2(const ActivationParams& p, cudaStream_t stream) { activation<Relu2>(p, stream); }
void xielu(const XieluParams& p, cudaStream_t stream) { activation<void>(p, stream); }
void sigmoid_mul(const GateParams& p, cudaStream_t stream) { gate<SigmoidGate>(p, stream); }
void gelu_tanh_gate(const GateParams& p, cudaStream_t stream) { gate<GeluTanhGate>(p, stream); }
void silu_mul(const GatedActivationParams& p, cudaStream_t stream) { gated_activation<Silu>(p, stream); }
void gelu_tanh_mul(const GatedActivationParams& p, cudaStream_t stream) { gated_activation<GeluTanh>(p, stream); }
void clamped_swiglu(const ClampedSwigluParams& p, cudaStream_t stream) { gated_activation<void>(p, stream); }

}  // namespace pybatch::cuda

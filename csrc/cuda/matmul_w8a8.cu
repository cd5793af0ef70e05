#include "cuda/kernels.h"
#include "cuda/matmul_kernel.cuh"
#include "cuda/sm90/matmul_w8a8.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kQuantizeThreads = 256;

struct Workspace {
  int8_t* rows;  // [m, row_stride]
  int64_t row_stride;
  float* scales;  // [m]
};

int64_t quantized_stride(const MatmulParams& p) { return ceil_div(p.k, 16) * 16; }

// A block a row. The scale is NaN if x has a value that is not finite, so that the row's results are NaN.
template <class T>
__global__ void __launch_bounds__(kQuantizeThreads) quantize_kernel(MatmulParams p, Workspace to) {
  float* scratch = dynamic_shared<float>();
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride;
  float max = 0.0f, poison = 0.0f;
  for (int64_t k = threadIdx.x * kRun; k < p.k; k += kQuantizeThreads * kRun) {
    float v[kRun];
    load_run(x + k, p.k - k, v);
    for (int i = 0; i < kRun; ++i) {
      max = fmaxf(max, fabsf(v[i]));
      poison = fmaf(v[i], 0.0f, poison);
    }
  }
  const float most = block_max(max, scratch), inverse = 127.0f / most;
  const float scale = most / 127.0f + block_sum(poison, scratch);
  constexpr float kSmallestNormal = 0x1p-126f;
  for (int64_t k = threadIdx.x; k < p.k; k += kQuantizeThreads) {
    to.rows[row * to.row_stride + k] =
        static_cast<int8_t>(scale >= kSmallestNormal ? __float2int_rn(to_float(x[k]) * inverse) : 0);
  }
  if (threadIdx.x == 0) to.scales[row] = scale < kSmallestNormal ? 0.0f : scale;
}

}  // namespace

size_t matmul_w8a8_workspace(const MatmulParams& p) {
  return static_cast<size_t>(p.m) * (quantized_stride(p) + sizeof(float));
}

void matmul_w8a8(const MatmulParams& p, void* workspace, cudaStream_t stream) {
  auto* rows = static_cast<int8_t*>(workspace);
  const Workspace to = {rows, quantized_stride(p), reinterpret_cast<float*>(rows + p.m * quantized_stride(p))};
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(quantize_kernel<T>, dim3(p.m), dim3(kQuantizeThreads), kQuantizeThreads / kWarp * sizeof(float), stream, p,
           to);
  });
  MatmulParams quantized = p;
  quantized.x = {to.rows, to.row_stride, DType::i8};
  const Scaling scaling = {p.scale, to.scales, p.bias, p.bias_dtype};
  if (wgmma_pays(quantized)) return matmul_w8a8_wgmma(quantized, scaling, stream);
  matmul<Int8Weights>(quantized, scaling, stream);
}

}  // namespace pybatch::cuda

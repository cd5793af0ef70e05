#include "cuda/kernels.h"
#include "cuda/matmul_kernel.cuh"
#include "cuda/norm_rows.cuh"
#include "cuda/sm90/matmul.cuh"

namespace pybatch::cuda {
namespace {

struct Workspace {
  int8_t* rows;        // [x_rows(), row_stride]
  int64_t row_stride;  // a multiple of 16
  float* scales;       // [x_rows()]
};

int64_t quantized_stride(const MatmulParams& p) { return ceil_div(p.k, 16) * 16; }

// A block a row. The scale is NaN if the row has a value that is not finite, so that its results are NaN.
template <class T, bool kNorm>
__global__ void __launch_bounds__(kMaxRowThreads) quantize_kernel(MatmulParams p, Workspace to) {
  begin_kernel();
  float* scratch = dynamic_shared<float>();
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride;
  const float rms = kNorm ? inverse_deviation(x, p.k, 0.0f, p.norm_eps, scratch) : 1.0f;
  // The result of rms_norm, if there is a norm.
  auto for_normed_runs = [&](const auto& f) {
    for_runs(x, p.k, [&](int64_t column, int64_t n, float (&v)[kRun]) {
      if constexpr (kNorm) {
        float weight[kRun];
        load_run(static_cast<const T*>(p.norm) + column, n, weight);
        for (int i = 0; i < kRun; ++i) v[i] = to_float(from_float<T>(rms_normed<T>(v[i], rms, weight[i])));
      }
      f(column, n, v);
    });
  };
  float max = 0.0f, poison = 0.0f;
  for_normed_runs([&](int64_t, int64_t, float (&v)[kRun]) {
    for (int i = 0; i < kRun; ++i) {
      max = fmaxf(max, fabsf(v[i]));
      poison = fmaf(v[i], 0.0f, poison);
    }
  });
  const float most = block_reduce<Largest>(max, scratch), inverse = 127.0f / most;
  const float scale = most / 127.0f + block_reduce<Add>(poison, scratch);
  constexpr float kSmallestNormal = 0x1p-126f;
  for_normed_runs([&](int64_t column, int64_t, float (&v)[kRun]) {
    alignas(8) int8_t q[kRun];  // rows are padded to whole runs
    for (int i = 0; i < kRun; ++i) {
      q[i] = static_cast<int8_t>(scale >= kSmallestNormal ? __float2int_rn(v[i] * inverse) : 0);
    }
    *reinterpret_cast<uint2*>(to.rows + row * to.row_stride + column) = *reinterpret_cast<const uint2*>(q);
  });
  if (threadIdx.x == 0) to.scales[row] = scale < kSmallestNormal ? 0.0f : scale;
}

template <bool kNorm>
void quantize(const MatmulParams& p, const Workspace& to, cudaStream_t stream) {
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(quantize_kernel<T, kNorm>, dim3(p.x_rows()), dim3(row_threads(p.k)), kRowScratchBytes, stream, p, to);
  });
}

}  // namespace

size_t matmul_w8a8_workspace(const MatmulParams& p) {
  return static_cast<size_t>(p.x_rows()) * (quantized_stride(p) + sizeof(float));
}

void matmul_w8a8(const MatmulParams& p, void* workspace, cudaStream_t stream) {
  auto* rows = static_cast<int8_t*>(workspace);
  const Workspace to = {rows, quantized_stride(p), reinterpret_cast<float*>(rows + p.x_rows() * quantized_stride(p))};
  p.norm != nullptr ? quantize<true>(p, to, stream) : quantize<false>(p, to, stream);
  MatmulParams quantized = p;
  quantized.x = {to.rows, to.row_stride, DType::i8};
  if (for_hopper(quantized)) return matmul_w8a8_hopper(quantized, to.scales, stream);
  matmul<Int8Weights>(quantized, to.scales, stream);
}

}  // namespace pybatch::cuda

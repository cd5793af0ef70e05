// scale_logits: a thread a run of eight columns.
#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) scale_logits_kernel(ScaleLogitsParams p) {
  begin_kernel();
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kRun;
  if (column >= p.vocab) return;
  const int64_t n = p.vocab - column < kRun ? p.vocab - column : kRun;
  float* logits = p.logits + blockIdx.x * p.row_stride + column;
  float v[kRun];
  load_run(logits, n, v);
  for (int i = 0; i < kRun; ++i) {
    v[i] *= p.scale;
    if (p.soft_cap > 0.0f) v[i] = p.soft_cap * tanhf(v[i] / p.soft_cap);
  }
  store_run(logits, n, v);
}

}  // namespace

void scale_logits(const ScaleLogitsParams& p, cudaStream_t stream) {
  launch(scale_logits_kernel, dim3(p.rows, ceil_div(p.vocab, kThreads * kRun)), dim3(kThreads), 0, stream, p);
}

}  // namespace pybatch::cuda

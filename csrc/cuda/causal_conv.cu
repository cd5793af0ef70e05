// causal_conv: a block a run of channels of one token, a thread eight of them. The last token of a sequence also keeps
// its state.
#include "cuda/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) causal_conv_kernel(CausalConvParams p) {
  begin_kernel();
  const int64_t row = blockIdx.x;
  const int64_t channel = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kRun;
  if (channel >= p.channels) return;
  const int64_t n = p.channels - channel < kRun ? p.channels - channel : kRun;
  const int32_t* starts = p.batch.query_start;
  int64_t s = 0, last = p.batch.sequences - 1;
  while (s < last) {  // the last sequence that starts at the row or before
    const int64_t middle = (s + last + 1) / 2;
    if (starts[middle] <= row) {
      s = middle;
    } else {
      last = middle - 1;
    }
  }
  const int64_t source = p.batch.source[s], destination = p.batch.destination[s], t = row - starts[s];
  const int64_t kept = p.taps - 1;
  T* state = static_cast<T*>(p.state);
  // Input `at` of the sequence, one that the state has if it is negative.
  auto input = [&](int64_t at, float (&v)[kRun]) {
    if (at >= 0) {
      load_run(static_cast<const T*>(p.x.data) + (starts[s] + at) * p.x.row_stride + channel, n, v);
    } else if (source >= 0) {
      load_run(state + source * p.state_stride + (kept + at) * p.channels + channel, n, v);
    } else {
      for (int i = 0; i < kRun; ++i) v[i] = 0.0f;
    }
  };
  float sum[kRun] = {}, x[kRun], w[kRun];
  for (int64_t j = 0; j < p.taps && destination >= 0; ++j) {
    input(t - kept + j, x);
    load_run(static_cast<const T*>(p.weight) + j * p.channels + channel, n, w);
    for (int i = 0; i < kRun; ++i) sum[i] = fmaf(w[i], x[i], sum[i]);
  }
  for (int i = 0; i < kRun; ++i) sum[i] = Silu::apply(sum[i]);
  store_run(static_cast<T*>(p.out.data) + row * p.out.row_stride + channel, n, sum);
  if (destination < 0 || row + 1 < starts[s + 1]) return;
  for (int64_t j = 0; j < kept; ++j) {
    input(t + 1 - kept + j, x);
    store_run(state + destination * p.state_stride + j * p.channels + channel, n, x);
  }
}

}  // namespace

void causal_conv(const CausalConvParams& p, cudaStream_t stream) {
  const dim3 grid(p.batch.tokens, ceil_div(p.channels, kThreads * kRun));
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(causal_conv_kernel<T>, grid, dim3(kThreads), 0, stream, p);
  });
}

}  // namespace pybatch::cuda

// copy_blocks: one launch over (block pair, segment), 16 bytes a thread and step.
#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kInFlight = 4;  // loads before the first store
constexpr int64_t kSegment = 16 * kThreads * kInFlight;

__global__ void __launch_bounds__(kThreads) copy_blocks_kernel(CopyBlocksParams p, bool aligned) {
  begin_kernel();
  const int64_t pair = blockIdx.x, begin = blockIdx.y * kSegment;
  const int64_t end = begin + kSegment < p.block_bytes ? begin + kSegment : p.block_bytes;
  const auto* src = static_cast<const unsigned char*>(p.src) + p.pairs[2 * pair] * p.block_bytes;
  auto* dst = static_cast<unsigned char*>(p.dst) + p.pairs[2 * pair + 1] * p.block_bytes;
  if (!aligned) {
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) dst[i] = src[i];
    return;
  }
  uint4 held[kInFlight];
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    const int64_t at = begin + (i * kThreads + static_cast<int>(threadIdx.x)) * 16;
    if (at < end) held[i] = load_global_16(src + at);
  }
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    const int64_t at = begin + (i * kThreads + static_cast<int>(threadIdx.x)) * 16;
    if (at < end) store_global_16(dst + at, held[i]);
  }
}

}  // namespace

void copy_blocks(const CopyBlocksParams& p, cudaStream_t stream) {
  auto is_aligned = [](const void* q) { return reinterpret_cast<uintptr_t>(q) % 16 == 0; };
  const bool aligned = is_aligned(p.src) && is_aligned(p.dst) && p.block_bytes % 16 == 0;
  const dim3 grid(p.count, ceil_div(p.block_bytes, kSegment));
  launch(copy_blocks_kernel, grid, dim3(kThreads), 0, stream, p, aligned);
}

}  // namespace pybatch::cuda

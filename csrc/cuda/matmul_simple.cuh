// Matmul without tensor cores, for fp32 and for weights and activations of unlike types: a thread a column, eight rows
// at a time, one fused multiply-add after the other in ascending K.
#pragma once

#include "cuda/common.cuh"
#include "cuda/launch.cuh"
#include "cuda/matmul_epilogue.cuh"
#include "cuda/matmul_rows.cuh"

namespace pybatch::cuda {

constexpr int kSimpleThreads = 128, kSimpleRows = 8, kSimpleK = 64;

template <class W, bool kInBlocks>
__global__ void __launch_bounds__(kSimpleThreads) simple_matmul_kernel(MatmulParams p) {
  begin_kernel();
  float* x = dynamic_shared<float>();  // [kSimpleRows][kSimpleK]
  const int64_t first_row = take_tile(p, kSimpleRows);
  if (first_row >= p.m) return;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kSimpleThreads + threadIdx.x;
  const W* weight = static_cast<const W*>(p.weight);
  float sum[kSimpleRows] = {}, total[kSimpleRows] = {};  // kInBlocks: of the block, and of those before it
  for (int64_t first_k = 0; first_k < p.k; first_k += kSimpleK) {
    __syncthreads();
    for (int i = threadIdx.x; i < kSimpleRows * kSimpleK; i += kSimpleThreads) {
      const int64_t row = first_row + i / kSimpleK, k = first_k + i % kSimpleK;
      x[i] = row < p.m && k < p.k ? load_as(p.x.dtype, p.x.data, x_row(p, row) * p.x.row_stride + k) : 0.0f;
    }
    __syncthreads();
    const int64_t end = p.k - first_k < kSimpleK ? p.k - first_k : kSimpleK;
    for (int64_t i = 0; i < end && column < p.n; ++i) {
      const int64_t k = first_k + i;
      const float w = to_float(weight[kInBlocks ? in_blocks_at(column, k, p.k) : packed_at(column, k, p.k, sizeof(W))]);
#pragma unroll
      for (int r = 0; r < kSimpleRows; ++r) sum[r] = fmaf(x[r * kSimpleK + i], w, sum[r]);
    }
    if (kInBlocks && (first_k % kBlockK != 0 || first_k + kSimpleK >= p.k) && column < p.n) {
      const int64_t at = block_scale_at(column, first_k / kBlockK, p.k);
      const float of_block = *reinterpret_cast<const float*>(static_cast<const char*>(p.weight) + at);
#pragma unroll
      for (int r = 0; r < kSimpleRows; ++r) total[r] = fmaf(sum[r], of_block, total[r]), sum[r] = 0;
    }
  }
  if (column >= p.n) return;
  const float scale = p.scale != nullptr ? p.scale[column] : 1.0f;
  const float bias = p.bias != nullptr ? load_as(p.bias_dtype, p.bias, column) : 0.0f;
#pragma unroll
  for (int r = 0; r < kSimpleRows; ++r) {
    if (first_row + r >= p.m) break;
    write_product(p, first_row + r, column, (kInBlocks ? total[r] : sum[r]) * scale + bias);
  }
}

template <class W, bool kInBlocks = false>
void simple_matmul(const MatmulParams& p, cudaStream_t stream) {
  const dim3 grid(row_tiles(p, kSimpleRows), ceil_div(p.n, kSimpleThreads));
  launch(simple_matmul_kernel<W, kInBlocks>, grid, dim3(kSimpleThreads), kSimpleRows * kSimpleK * sizeof(float), stream,
         p);
}

}  // namespace pybatch::cuda

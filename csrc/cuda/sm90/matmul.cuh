// Matmuls on Hopper. Their results are bit for bit those of the other chips' kernels: sums of s8 are exact, and sums of
// floats, by mma.sync or wgmma, are over the same sixteen elements of K at a time and the same parts of K.
#pragma once

#include "cuda/launch.cuh"
#include "pybatch/matmul.h"

namespace pybatch::cuda {

// Whether p is for the functions below on this device. x is of the type that they multiply; tensor copies read it.
inline bool for_hopper(const MatmulParams& p) {
  const int64_t row_bytes = p.x.row_stride * (p.x.dtype == DType::i8 ? 1 : 2);
  return p.experts.count == 0 && p.m > 0 && p.n > 0 && p.k > 0 && row_bytes % 16 == 0 &&
         reinterpret_cast<uintptr_t>(p.x.data) % 16 == 0 && device_attribute(cudaDevAttrComputeCapabilityMajor) == 9;
}

void matmul_dense_hopper(const MatmulParams& p, cudaStream_t stream);
void matmul_w8a16_hopper(const MatmulParams& p, cudaStream_t stream);
void matmul_e4m3_hopper(const MatmulParams& p, cudaStream_t stream);  // W8A16 too
void matmul_e4m3_blocks_hopper(const MatmulParams& p, cudaStream_t stream);
void matmul_w8a8_hopper(const MatmulParams& p, const float* row_scale, cudaStream_t stream);  // of quantised rows

}  // namespace pybatch::cuda

// W8A8 for many rows on Hopper: the s32 sums of wgmma are exact, and so are bit for bit those of mma.sync.
#pragma once

#include "cuda/matmul_epilogue.cuh"

namespace pybatch::cuda {

// Whether p, with quantised rows, is for matmul_w8a8_wgmma on this device.
bool wgmma_pays(const MatmulParams& p);
void matmul_w8a8_wgmma(const MatmulParams& p, const float* row_scale, cudaStream_t stream);

}  // namespace pybatch::cuda

// Which of Hopper's kernels multiplies how many rows.
#pragma once

#include "cuda/sm90/matmul.cuh"
#include "cuda/sm90/matmul_few_rows.cuh"
#include "cuda/sm90/matmul_kernel.cuh"

namespace pybatch::cuda {

// row_scale: [p.m], may be null.
template <class Few, class Many>  // an Op of ../matmul_ops.cuh, and one of matmul_ops.cuh
void hopper_matmul(const MatmulParams& p, const float* row_scale, cudaStream_t stream) {
  if (p.m > 32) return wgmma_matmul<Many>(p, row_scale, stream);
  if (p.m > 16) return run_few_rows<Few, 32>(p, row_scale, stream);
  if (p.m > 8) return run_few_rows<Few, 16>(p, row_scale, stream);
  run_few_rows<Few, 8, 1>(p, row_scale, stream);
}

}  // namespace pybatch::cuda

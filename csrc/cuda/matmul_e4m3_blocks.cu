#include "cuda/kernels.h"
#include "cuda/matmul_w8a16.cuh"

namespace pybatch::cuda {

void matmul_e4m3_blocks(const MatmulParams& p, cudaStream_t stream) {
  matmul_widened<e4m3, matmul_e4m3_blocks_hopper, true>(p, stream);
}

}  // namespace pybatch::cuda

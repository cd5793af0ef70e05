#include "cuda/kernels.h"
#include "cuda/matmul_w8a16.cuh"

namespace pybatch::cuda {

void matmul_w8a16(const MatmulParams& p, cudaStream_t stream) {
  matmul_widened<int8_t, matmul_w8a16_hopper>(p, stream);
}

}  // namespace pybatch::cuda

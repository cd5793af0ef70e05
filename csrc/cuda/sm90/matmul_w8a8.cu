#include "cuda/sm90/matmul_by_rows.cuh"

namespace pybatch::cuda {

void matmul_w8a8_hopper(const MatmulParams& p, const float* row_scale, cudaStream_t stream) {
  hopper_matmul<Int8Weights, WgmmaInt8>(p, row_scale, stream);
}

}  // namespace pybatch::cuda

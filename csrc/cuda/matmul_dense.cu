#include "cuda/kernels.h"
#include "cuda/matmul_kernel.cuh"
#include "cuda/matmul_simple.cuh"
#include "cuda/sm90/matmul.cuh"

namespace pybatch::cuda {

void matmul_dense(const MatmulParams& p, cudaStream_t stream) {
  with_float_type(p.weight_dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (!std::is_same_v<T, float>) {
      if (p.x.dtype == p.weight_dtype) {
        if (for_hopper(p)) return matmul_dense_hopper(p, stream);
        return matmul<DenseWeights<T>>(p, nullptr, stream);
      }
    }
    simple_matmul<T>(p, stream);
  });
}

}  // namespace pybatch::cuda

#include "cuda/kernels.h"
#include "cuda/matmul_kernel.cuh"
#include "cuda/matmul_simple.cuh"
#include "cuda/sm90/matmul.cuh"

namespace pybatch::cuda {

void matmul_w8a16(const MatmulParams& p, cudaStream_t stream) {
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (std::is_same_v<T, float>) {
      simple_matmul<int8_t>(p, stream);
    } else {
      if (for_hopper(p)) return matmul_w8a16_hopper(p, stream);
      matmul<WidenedWeights<T>>(p, nullptr, stream);
    }
  });
}

}  // namespace pybatch::cuda

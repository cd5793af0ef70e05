#include "cuda/sm90/matmul_by_rows.cuh"

namespace pybatch::cuda {

void matmul_w8a16_hopper(const MatmulParams& p, cudaStream_t stream) {
  with_half_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    hopper_matmul<WidenedWeights<T, int8_t>, WgmmaWidened<T, int8_t>>(p, nullptr, stream);
  });
}

}  // namespace pybatch::cuda

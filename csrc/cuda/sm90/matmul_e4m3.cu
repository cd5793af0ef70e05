#include "cuda/sm90/matmul_by_rows.cuh"

namespace pybatch::cuda {

void matmul_e4m3_hopper(const MatmulParams& p, cudaStream_t stream) {
  with_half_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    hopper_matmul<WidenedWeights<T, e4m3>, WgmmaWidened<T, e4m3>>(p, nullptr, stream);
  });
}

}  // namespace pybatch::cuda

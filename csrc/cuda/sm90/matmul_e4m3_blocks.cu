#include "cuda/sm90/matmul_by_rows.cuh"

namespace pybatch::cuda {

void matmul_e4m3_blocks_hopper(const MatmulParams& p, cudaStream_t stream) {
  with_half_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    hopper_matmul<WidenedWeights<T, e4m3, true>, WgmmaWidened<T, e4m3, true>>(p, nullptr, stream);
  });
}

}  // namespace pybatch::cuda

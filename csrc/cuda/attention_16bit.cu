#include "cuda/attention_kernel.cuh"

namespace pybatch::cuda {

void attend_16bit(const PagedAttentionParams& p, const Workspace& work, cudaStream_t stream) {
  with_half_type(p.q.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    attend<T, T>(p, work, stream);
  });
}

}  // namespace pybatch::cuda

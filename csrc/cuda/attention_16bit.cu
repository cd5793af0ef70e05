#include "cuda/attention_kernel.cuh"
#include "cuda/sm90/attention.cuh"

namespace pybatch::cuda {

void attend_16bit(const PagedAttentionParams& p, const Workspace& work, cudaStream_t stream) {
  with_half_type(p.q.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    attend_decodes<T, T>(p, work, stream);
    if (p.tokens <= p.sequences) return;
    prefills_by_wgmma(p) ? prefill_wgmma(p, work, stream) : attend_prefills<T, T>(p, work, stream);
  });
}

}  // namespace pybatch::cuda

// Prefill on Hopper, bit for bit that of mma.sync: the same steps, and wgmma adds as mma.sync does.
#pragma once

#include "cuda/attention_plan.cuh"

namespace pybatch::cuda {

// Whether the sequences with several queries are for prefill_wgmma on this device.
bool prefills_by_wgmma(const PagedAttentionParams&);
void prefill_wgmma(const PagedAttentionParams&, const Workspace&, cudaStream_t);

}  // namespace pybatch::cuda

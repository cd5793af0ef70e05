// The CUDA kernels as the binding and the tests call them: the params of the CPU kernels with device pointers, and a
// stream. They launch and return; no value is read back, so all of them can be captured in a CUDA graph.
//
// If a kernel needs a workspace, <kernel>_workspace returns its bytes; the buffer is 256-byte aligned, and free again
// when the kernel has run.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "pybatch/activation.h"
#include "pybatch/attention.h"
#include "pybatch/embedding.h"
#include "pybatch/kv_cache.h"
#include "pybatch/kv_pruning.h"
#include "pybatch/linear_attention.h"
#include "pybatch/lora.h"
#include "pybatch/matmul.h"
#include "pybatch/norm.h"
#include "pybatch/routing.h"
#include "pybatch/sampling.h"

namespace pybatch::cuda {

void rms_norm(const NormParams&, cudaStream_t);
void layer_norm(const NormParams&, cudaStream_t);
void gelu(const ActivationParams&, cudaStream_t);
void gelu_tanh(const ActivationParams&, cudaStream_t);
void relu2(const ActivationParams&, cudaStream_t);
void xielu(const XieluParams&, cudaStream_t);
void gated_rms_norm(const GatedNormParams&, cudaStream_t);
void add_normed(const AddNormedParams&, cudaStream_t);
void silu_mul(const GatedActivationParams&, cudaStream_t);
void gelu_tanh_mul(const GatedActivationParams&, cudaStream_t);
void clamped_swiglu(const ClampedSwigluParams&, cudaStream_t);
void sigmoid_mul(const GateParams&, cudaStream_t);
void gelu_tanh_gate(const GateParams&, cudaStream_t);
void embedding(const EmbeddingParams&, cudaStream_t);
void rope_kv_write(const RopeKvWriteParams&, cudaStream_t);
void copy_blocks(const CopyBlocksParams&, cudaStream_t);  // either side may be mapped pinned host memory

void rotate_keys(const RotateKeysParams&, cudaStream_t);
void gather_kv(const GatherKvParams&, cudaStream_t);

void causal_conv(const CausalConvParams&, cudaStream_t);
void gated_delta_rule(const GatedDeltaParams&, cudaStream_t);

size_t paged_attention_workspace(const PagedAttentionParams&);
void paged_attention(const PagedAttentionParams&, void* workspace, cudaStream_t);
size_t attention_mass_workspace(const AttentionMassParams&);
void attention_mass(const AttentionMassParams&, void* workspace, cudaStream_t);

// Matmuls do not normalise x, except W8A8's, which does so as it quantises: rms_norm runs before them if p.norm is set.
void matmul_dense(const MatmulParams&, cudaStream_t);
void matmul_w8a16(const MatmulParams&, cudaStream_t);
void matmul_e4m3(const MatmulParams&, cudaStream_t);  // matmul_w8a16 of such weights
void matmul_e4m3_blocks(const MatmulParams&, cudaStream_t);
size_t matmul_w8a8_workspace(const MatmulParams&);
void matmul_w8a8(const MatmulParams&, void* workspace, cudaStream_t);
size_t matmul_gguf_workspace(const MatmulParams&);
void matmul_gguf(const MatmulParams&, void* workspace, cudaStream_t);

size_t add_lora_workspace(const LoraParams&);
void add_lora(const LoraParams&, void* workspace, cudaStream_t);

void route_experts(const RouteParams&, cudaStream_t);
// Where p has places: out from the product's rows, [m, width] of out's dtype. The matmuls themselves sum nothing.
void sum_over_experts(const MatmulParams& p, const void* products, cudaStream_t);

void scale_logits(const ScaleLogitsParams&, cudaStream_t);
size_t adjust_logits_workspace(const AdjustLogitsParams&);
void adjust_logits(const AdjustLogitsParams&, void* workspace, cudaStream_t);
void sample(const SampleParams&, cudaStream_t);
void token_logprobs(const TokenLogprobsParams&, cudaStream_t);

}  // namespace pybatch::cuda

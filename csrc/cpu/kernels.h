// The table of CPU kernels. Each source under cpu/ is compiled once per instruction set, into a namespace of that
// set's name; isa.cpp fills the table from the chosen one. The sources do not include it, so that a new kernel has no
// other compiled again.
#pragma once

#include "pybatch/activation.h"
#include "pybatch/attention.h"
#include "pybatch/ceilings.h"
#include "pybatch/embedding.h"
#include "pybatch/kv_cache.h"
#include "pybatch/kv_pruning.h"
#include "pybatch/latent_attention.h"
#include "pybatch/linear_attention.h"
#include "pybatch/lora.h"
#include "pybatch/matmul.h"
#include "pybatch/norm.h"
#include "pybatch/routing.h"
#include "pybatch/sampling.h"

#define PYBATCH_CPU_KERNELS(X)             \
  X(rms_norm, NormParams)                  \
  X(layer_norm, NormParams)                \
  X(gelu, ActivationParams)                \
  X(gelu_tanh, ActivationParams)           \
  X(relu2, ActivationParams)               \
  X(xielu, XieluParams)                    \
  X(gated_rms_norm, GatedNormParams)       \
  X(add_normed, AddNormedParams)           \
  X(silu_mul, GatedActivationParams)       \
  X(gelu_tanh_mul, GatedActivationParams)  \
  X(clamped_swiglu, ClampedSwigluParams)   \
  X(sigmoid_mul, GateParams)               \
  X(gelu_tanh_gate, GateParams)            \
  X(embedding, EmbeddingParams)            \
  X(matmul_dense, MatmulParams)            \
  X(matmul_w8a16, MatmulParams)            \
  X(matmul_w8a8, MatmulParams)             \
  X(matmul_gguf, MatmulParams)             \
  X(add_lora, LoraParams)                  \
  X(route_experts, RouteParams)            \
  X(rope_kv_write, RopeKvWriteParams)      \
  X(copy_blocks, CopyBlocksParams)         \
  X(paged_attention, PagedAttentionParams) \
  X(rotate_keys, RotateKeysParams)         \
  X(gather_kv, GatherKvParams)             \
  X(attention_mass, AttentionMassParams)   \
  X(latent_write, LatentWriteParams)       \
  X(latent_attention, LatentParams)        \
  X(causal_conv, CausalConvParams)         \
  X(gated_delta_rule, GatedDeltaParams)    \
  X(scale_logits, ScaleLogitsParams)       \
  X(adjust_logits, AdjustLogitsParams)     \
  X(sample, SampleParams)                  \
  X(token_logprobs, TokenLogprobsParams)   \
  X(ceiling_loop, CeilingLoopParams)

namespace pybatch::cpu {

struct Kernels {
#define PYBATCH_FIELD(name, Params) void (*name)(const Params&);
  PYBATCH_CPU_KERNELS(PYBATCH_FIELD)
#undef PYBATCH_FIELD
};

// Declares every kernel in the namespace of one instruction set, and the table that points at them.
#define PYBATCH_DECLARE(name, Params) void name(const Params&);
#define PYBATCH_DECLARE_ISA(isa)       \
  namespace isa {                      \
  PYBATCH_CPU_KERNELS(PYBATCH_DECLARE) \
  }

PYBATCH_DECLARE_ISA(portable)
PYBATCH_DECLARE_ISA(avx2)
PYBATCH_DECLARE_ISA(avx2_vnni)  // only those that have integers to multiply
PYBATCH_DECLARE_ISA(avx512)
PYBATCH_DECLARE_ISA(amx)  // only those that multiply by tiles
PYBATCH_DECLARE_ISA(neon)
PYBATCH_DECLARE_ISA(neon_dotprod)  // only those that have integers to multiply
PYBATCH_DECLARE_ISA(neon_i8mm)

const Kernels& kernels();

}  // namespace pybatch::cpu

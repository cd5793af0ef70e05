// The ops as torch calls them, for any backend: checks of every argument, and the params structs that kernels take. Ops
// write into tensors the caller gives (pybatch/ops allocates where the caller does not), so that a step of the
// engine allocates nothing here. Only the LibTorch stable ABI is used.
//
// A backend has a function of each kernel's name that takes its params, and
//   Scope     constructed from one of an op's tensors before any work, destroyed after it
//   holds     whether a tensor is where the kernels run; kDevice names that place
//   reaches   whether swap_blocks can read and write a tensor
//   uses      called for every tensor that a kernel is about to use, with the argument's name
//   writes    likewise for every tensor that a kernel writes
//   verify    runs a check of values (values.h) where the host can read them; told what memory the check reads
//   kHasE4m3  whether KV caches may be float8_e4m3fn
#pragma once

#include <torch/csrc/stable/library.h>

#include "torch_ops/kv.h"
#include "torch_ops/kv_pruning.h"
#include "torch_ops/layers.h"
#include "torch_ops/linear_attention.h"
#include "torch_ops/lora.h"
#include "torch_ops/matmul.h"
#include "torch_ops/sampling.h"

namespace pybatch {

template <class Backend>
void implement_ops(torch::stable::detail::StableLibrary& m) {
  using Layers = LayerOps<Backend>;
  using Matmuls = MatmulOps<Backend>;
  using Kv = KvOps<Backend>;
  using Pruning = KvPruningOps<Backend>;
  using Linear = LinearAttentionOps<Backend>;
  using Sampling = SamplingOps<Backend>;
  m.impl("rms_norm", TORCH_BOX(&Layers::rms_norm));
  m.impl("layer_norm", TORCH_BOX(&Layers::layer_norm));
  m.impl("gelu", TORCH_BOX(&Layers::template activation<&Backend::gelu>));
  m.impl("gelu_tanh", TORCH_BOX(&Layers::template activation<&Backend::gelu_tanh>));
  m.impl("relu2", TORCH_BOX(&Layers::template activation<&Backend::relu2>));
  m.impl("xielu", TORCH_BOX(&Layers::xielu));
  m.impl("add_normed", TORCH_BOX(&Layers::add_normed));
  m.impl("silu_mul", TORCH_BOX(&Layers::template gated_activation<&Backend::silu_mul>));
  m.impl("gelu_tanh_mul", TORCH_BOX(&Layers::template gated_activation<&Backend::gelu_tanh_mul>));
  m.impl("clamped_swiglu", TORCH_BOX(&Layers::clamped_swiglu));
  m.impl("sigmoid_mul", TORCH_BOX(&Layers::template gate<&Backend::sigmoid_mul>));
  m.impl("gelu_tanh_gate", TORCH_BOX(&Layers::template gate<&Backend::gelu_tanh_gate>));
  m.impl("embedding", TORCH_BOX(&Layers::embedding));
  m.impl("matmul_dense", TORCH_BOX(&Matmuls::matmul_dense));
  m.impl("matmul_w8a16", TORCH_BOX(&Matmuls::template matmul_bytes<&Backend::matmul_w8a16>));
  m.impl("matmul_w8a8", TORCH_BOX(&Matmuls::template matmul_bytes<&Backend::matmul_w8a8>));
  m.impl("matmul_gguf", TORCH_BOX(&Matmuls::matmul_gguf));
  m.impl("experts_dense", TORCH_BOX(&Matmuls::experts_dense));
  m.impl("experts_w8a16", TORCH_BOX(&Matmuls::template experts_bytes<&Backend::matmul_w8a16>));
  m.impl("experts_w8a8", TORCH_BOX(&Matmuls::template experts_bytes<&Backend::matmul_w8a8>));
  m.impl("experts_gguf", TORCH_BOX(&Matmuls::experts_gguf));
  m.impl("add_lora", TORCH_BOX(&LoraOps<Backend>::add_lora));
  m.impl("route_experts", TORCH_BOX(&Matmuls::route_experts));
  m.impl("rope_kv_write", TORCH_BOX(&Kv::rope_kv_write));
  m.impl("copy_blocks", TORCH_BOX(&Kv::copy_blocks));
  m.impl("swap_blocks", TORCH_BOX(&Kv::swap_blocks));
  m.impl("paged_attention", TORCH_BOX(&Kv::paged_attention));
  m.impl("scale_logits", TORCH_BOX(&Sampling::scale_logits));
  m.impl("adjust_logits", TORCH_BOX(&Sampling::adjust_logits));
  m.impl("sample", TORCH_BOX(&Sampling::sample));
  m.impl("token_logprobs", TORCH_BOX(&Sampling::token_logprobs));
  m.impl("rotate_keys", TORCH_BOX(&Pruning::rotate_keys));
  m.impl("gather_kv", TORCH_BOX(&Pruning::gather_kv));
  m.impl("attention_mass", TORCH_BOX(&Pruning::attention_mass));
  m.impl("causal_conv", TORCH_BOX(&Linear::causal_conv));
  m.impl("gated_delta_rule", TORCH_BOX(&Linear::gated_delta_rule));
  m.impl("gated_rms_norm", TORCH_BOX(&Linear::gated_rms_norm));
}

}  // namespace pybatch

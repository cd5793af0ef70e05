"""Small random models of every family, made and saved by transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    ApertusConfig,
    ArceeConfig,
    Cohere2Config,
    CohereConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Ernie4_5Config,
    Exaone4Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeConfig,
    GlmConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    GraniteMoeHybridConfig,
    GraniteMoeSharedConfig,
    HeliumConfig,
    HunYuanDenseV1Config,
    InternLM3Config,
    LlamaConfig,
    Ministral3Config,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OlmoeConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.gemma4 import Gemma4TextConfig
from transformers.models.glm4_moe_lite import Glm4MoeLiteConfig
from transformers.models.qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5_moe import Qwen3_5MoeTextConfig
from transformers.models.qwen3_next import Qwen3NextConfig
from transformers.models.youtu import YoutuConfig

SMALL: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large enough that logits are far apart
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
# Longer than the original context, prompts of 300 tokens have the long factors.
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 12.0, 16.0],
}
WITHOUT_GROUPS = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
GPT = {
    **{key: SMALL[key] for key in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")},
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 512,
}
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.125,
    "logits_scaling": 8.0,
}
NO_MAMBA: dict[str, Any] = {"layer_types": ["full_attention"] * 3, "mamba_n_heads": 4}
HUNYUAN_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 50.0}
NEAR, WHOLE = "sliding_attention", "full_attention"
GEMMA3_ROPES = {
    WHOLE: {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
    NEAR: {"rope_type": "default", "rope_theta": 5000.0},
}

HYBRID: dict[str, Any] = SMALL | {
    "head_dim": 32,
    "initializer_range": 0.1,
    "full_attention_interval": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 3, "moe_intermediate_size": 48}
LATENT: dict[str, Any] = {
    **{key: value for key, value in SMALL.items() if key != "num_key_value_heads"},
    "num_attention_heads": 6,
    "hidden_size": 84,
    "q_lora_rank": 48,
    "kv_lora_rank": 40,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 20,
}
MSCALE_ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "mscale": 0.7,
    "mscale_all_dim": 1.2,
}
SHARED: dict[str, Any] = {"num_experts": 8, "shared_expert_intermediate_size": 40}

CONFIGS = {
    "llama2": LlamaConfig(**{**SMALL, "num_key_value_heads": 4}),
    "llama3": LlamaConfig(**SMALL, rope_parameters=LLAMA3_ROPE),
    "llama-yarn": LlamaConfig(**SMALL, rope_parameters=YARN_ROPE),
    "llama-linear": LlamaConfig(**SMALL, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
    "smollm2": LlamaConfig(
        **{**SMALL, "hidden_size": 72, "num_attention_heads": 3, "num_key_value_heads": 1}, tie_word_embeddings=True
    ),
    "llama-biases": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "llama-heads-of-2": LlamaConfig(**{**SMALL, "hidden_size": 16, "num_attention_heads": 8}),
    "llama-heads-of-20": LlamaConfig(**SMALL, head_dim=20, attention_bias=True),
    "mistral": MistralConfig(**SMALL, sliding_window=40),
    "mistral-gelu": MistralConfig(**SMALL, sliding_window=None, hidden_act="gelu_pytorch_tanh", head_dim=32),
    "qwen2": Qwen2Config(**SMALL),
    "qwen2-windows": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=24, max_window_layers=1),
    "qwen3": Qwen3Config(**SMALL, head_dim=32, tie_word_embeddings=True),
    "qwen3_5": Qwen3_5TextConfig(**HYBRID),
    "qwen3_5-moe": Qwen3_5MoeTextConfig(**HYBRID, **EXPERTS, **SHARED),
    "qwen3_next": Qwen3NextConfig(**HYBRID | EXPERTS | SHARED | {"num_hidden_layers": 4}),
    "qwen3_next-sparse": Qwen3NextConfig(
        **HYBRID, **EXPERTS, **SHARED, mlp_only_layers=[2], norm_topk_prob=False, linear_conv_kernel_dim=3
    ),
    "qwen3_next-dense": Qwen3NextConfig(**HYBRID, num_experts=0),
    "qwen3_5-odd": Qwen3_5TextConfig(
        **HYBRID | {"linear_key_head_dim": 24, "linear_value_head_dim": 20, "linear_num_value_heads": 2},
        layer_types=["full_attention", "linear_attention", "linear_attention"],
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    "qwen3-biases": Qwen3Config(**SMALL, head_dim=16, attention_bias=True),
    "qwen3-heads-of-12": Qwen3Config(**SMALL, head_dim=12),
    "phi3": Phi3Config(**SMALL, sliding_window=40),
    "phi3-longrope": Phi3Config(
        **SMALL,
        tie_word_embeddings=True,
        original_max_position_embeddings=512,
        partial_rotary_factor=0.75,
        rope_parameters={**LONGROPE, "factor": 8.0},
    ),
    "smollm3": SmolLM3Config(**SMALL, no_rope_layer_interval=2),
    "smollm3-windows": SmolLM3Config(
        **SMALL, no_rope_layers=[0, 1, 1], use_sliding_window=True, sliding_window=24, attention_bias=True
    ),
    "ministral": MinistralConfig(
        **SMALL,
        head_dim=16,
        sliding_window=40,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "glm": GlmConfig(**SMALL, head_dim=16),
    "glm-plain": GlmConfig(**SMALL, head_dim=16, attention_bias=False, tie_word_embeddings=True),
    "ernie4_5": Ernie4_5Config(**SMALL, head_dim=32),
    "ernie4_5-biases": Ernie4_5Config(**SMALL, head_dim=16, use_bias=True, tie_word_embeddings=False),
    "seed_oss": SeedOssConfig(**SMALL, head_dim=32),
    "internlm3": InternLM3Config(**SMALL, head_dim=16, attention_bias=True, mlp_bias=True),
    "helium": HeliumConfig(**SMALL, head_dim=16),
    "starcoder2": Starcoder2Config(**SMALL, sliding_window=40),
    "starcoder2-gelu": Starcoder2Config(**SMALL, hidden_act="gelu", use_bias=False, tie_word_embeddings=False),
    "gpt_neox": GPTNeoXConfig(**WITHOUT_GROUPS),
    "gpt_neox-serial": GPTNeoXConfig(
        **WITHOUT_GROUPS, use_parallel_residual=False, attention_bias=False, hidden_act="gelu_fast"
    ),
    "olmo2": Olmo2Config(**SMALL),
    "olmo3": Olmo3Config(**{**SMALL, "num_hidden_layers": 4}, sliding_window=24),
    "olmo3-yarn": Olmo3Config(
        **SMALL,
        sliding_window=24,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        rope_parameters={"full_attention": dict(YARN_ROPE), "sliding_attention": {"rope_type": "default"}},
    ),
    "exaone4": Exaone4Config(**SMALL, sliding_window=24, sliding_window_pattern=2),
    "exaone4-whole": Exaone4Config(**SMALL, sliding_window=None, layer_types=["full_attention"] * 3),
    "glm4": Glm4Config(**SMALL, head_dim=16),
    "granite": GraniteConfig(
        **SMALL,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.125,
        logits_scaling=8.0,
        tie_word_embeddings=True,
    ),
    "cohere": CohereConfig(**SMALL, logit_scale=0.25),
    "cohere-biases": CohereConfig(**SMALL, attention_bias=True, tie_word_embeddings=False),
    "cohere-own-norms": CohereConfig(**SMALL, use_qk_norm=True),
    "cohere2": Cohere2Config(
        **SMALL,
        sliding_window=24,
        logit_scale=0.25,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "apertus": ApertusConfig(**SMALL, rope_parameters=LLAMA3_ROPE),
    "apertus-biases": ApertusConfig(**SMALL, attention_bias=True, tie_word_embeddings=True, hidden_act="xielu"),
    "arcee": ArceeConfig(**SMALL, mlp_bias=True),
    "nemotron": NemotronConfig(**SMALL, mlp_bias=True, partial_rotary_factor=0.5),
    "olmo": OlmoConfig(**SMALL),
    "stablelm": StableLmConfig(**SMALL, partial_rotary_factor=0.25, use_qkv_bias=True),
    "stablelm-parallel": StableLmConfig(**SMALL, qk_layernorm=True, use_parallel_residual=True),
    "stablelm-own-norms": StableLmConfig(**SMALL, qk_layernorm=True, partial_rotary_factor=0.5),
    "phi": PhiConfig(**SMALL, partial_rotary_factor=0.5),
    "phi-own-norms": PhiConfig(**SMALL, partial_rotary_factor=0.5, qk_layernorm=True),
    "hunyuan": HunYuanDenseV1Config(**SMALL, head_dim=32, rope_parameters=HUNYUAN_ROPE),
    "ministral3": Ministral3Config(**SMALL, head_dim=16, rope_parameters={**YARN_ROPE, "llama_4_scaling_beta": 0.5}),
    "gemma": GemmaConfig(**SMALL, head_dim=32),
    "gemma2": Gemma2Config(
        **SMALL, head_dim=32, query_pre_attn_scalar=24, sliding_window=24, attn_logit_softcapping=5.0,
        final_logit_softcapping=8.0,
    ),
    "gemma2-without-caps": Gemma2Config(
        **SMALL, head_dim=16, sliding_window=40, layer_types=[WHOLE, NEAR, NEAR], attn_logit_softcapping=None,
        final_logit_softcapping=None, tie_word_embeddings=False, attention_bias=True,
    ),
    "gemma3": Gemma3TextConfig(
        **SMALL, head_dim=32, query_pre_attn_scalar=40, sliding_window=24, layer_types=[NEAR, WHOLE, NEAR],
        rope_parameters=GEMMA3_ROPES,
    ),
    "gemma3-pattern": Gemma3TextConfig(
        **SMALL, head_dim=16, sliding_window=16, sliding_window_pattern=2, final_logit_softcapping=8.0
    ),
    "gemma4": Gemma4TextConfig(
        **{**SMALL, "num_hidden_layers": 4}, head_dim=16, global_head_dim=32, sliding_window=24,
        hidden_size_per_layer_input=0, layer_types=[NEAR, WHOLE, NEAR, WHOLE],
    ),
    "gemma4-shared": Gemma4TextConfig(
        **{**SMALL, "num_hidden_layers": 6}, head_dim=32, global_head_dim=16, sliding_window=24,
        hidden_size_per_layer_input=24, vocab_size_per_layer_input=230, num_kv_shared_layers=3,
        use_double_wide_mlp=True, layer_types=[WHOLE, NEAR, WHOLE, NEAR, NEAR, WHOLE], final_logit_softcapping=8.0,
    ),
    "gemma4-keys-as-values": Gemma4TextConfig(
        **SMALL, head_dim=20, global_head_dim=24, sliding_window=40, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=211, layer_types=[NEAR, WHOLE, WHOLE], attention_k_eq_v=True,
        num_global_key_value_heads=1, attention_bias=True, tie_word_embeddings=False,
        rope_parameters={
            WHOLE: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5, "factor": 2.0},
            NEAR: {"rope_type": "default", "rope_theta": 5000.0},
        },
    ),
    "gemma4-moe": Gemma4TextConfig(
        **SMALL, head_dim=16, global_head_dim=32, sliding_window=24, hidden_size_per_layer_input=0,
        attention_k_eq_v=True, num_global_key_value_heads=1, enable_moe_block=True, num_experts=6, top_k_experts=2,
        moe_intermediate_size=48, layer_types=[NEAR, WHOLE, WHOLE],
    ),
    "gpt2": GPT2Config(**GPT),
    "gpt2-untied": GPT2Config(**GPT, n_inner=80, activation_function="gelu", tie_word_embeddings=False),
    "gpt2-scales": GPT2Config(**GPT, scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True),
    "gptj": GPTJConfig(**GPT, rotary_dim=8),
    "gptj-whole-heads": GPTJConfig(**GPT, rotary_dim=16, n_inner=80),
    "falcon": FalconConfig(**WITHOUT_GROUPS),
    "falcon-grouped": FalconConfig(**WITHOUT_GROUPS, new_decoder_architecture=True, num_kv_heads=2),
    "falcon2": FalconConfig(
        **WITHOUT_GROUPS, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1,
        rope_parameters={"rope_type": "default", "rope_theta": 500042.0}, tie_word_embeddings=False,
    ),
    "falcon-serial": FalconConfig(
        **WITHOUT_GROUPS, multi_query=False, parallel_attn=False, bias=True, ffn_hidden_size=88
    ),
    "granitemoe": GraniteMoeConfig(**SMALL, **MULTIPLIERS, num_local_experts=5, num_experts_per_tok=3),
    "granitemoeshared": GraniteMoeSharedConfig(
        **SMALL, **MULTIPLIERS, num_local_experts=4, shared_intermediate_size=40, tie_word_embeddings=True
    ),
    "granitemoehybrid-dense": GraniteMoeHybridConfig(
        **SMALL, **MULTIPLIERS, **NO_MAMBA, num_local_experts=0, shared_intermediate_size=72,
        position_embedding_type="rope",
    ),
    "granitemoehybrid": GraniteMoeHybridConfig(
        **SMALL, **MULTIPLIERS, **NO_MAMBA, num_local_experts=4, shared_intermediate_size=40, attention_bias=True
    ),
    "qwen3-moe": Qwen3MoeConfig(**SMALL, **EXPERTS, num_experts=8, head_dim=32, norm_topk_prob=True),
    "qwen3-moe-dense-layers": Qwen3MoeConfig(
        **{**SMALL, "num_hidden_layers": 4}, **EXPERTS, num_experts=5, attention_bias=True, decoder_sparse_step=2,
        mlp_only_layers=[3], use_sliding_window=True, sliding_window=30,
    ),
    "qwen2-moe": Qwen2MoeConfig(**SMALL, **EXPERTS, num_experts=6, shared_expert_intermediate_size=40),
    "qwen2-moe-windows": Qwen2MoeConfig(
        **SMALL, **EXPERTS, num_experts=6, shared_expert_intermediate_size=64, qkv_bias=False, norm_topk_prob=True,
        use_sliding_window=True, sliding_window=20, max_window_layers=1,
    ),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=40),
    "olmoe": OlmoeConfig(**{**SMALL, "intermediate_size": 80}, num_experts=9, num_experts_per_tok=3),
    "olmoe-normalized": OlmoeConfig(**SMALL, num_experts=4, num_experts_per_tok=4, norm_topk_prob=True),
    "glm4-moe": Glm4MoeConfig(**SMALL, **EXPERTS, head_dim=16, n_routed_experts=8),
    "glm4-moe-groups": Glm4MoeConfig(
        **SMALL, **EXPERTS, head_dim=32, n_routed_experts=12, n_group=4, topk_group=2, use_qk_norm=True,
        attention_bias=True, n_shared_experts=2, routed_scaling_factor=1.8, first_k_dense_replace=2,
        norm_topk_prob=False,
    ),
    "deepseek-v2": DeepseekV2Config(
        **LATENT | {"q_lora_rank": None}, **EXPERTS, n_routed_experts=8, attention_bias=True
    ),
    "deepseek-v2-groups": DeepseekV2Config(
        **LATENT, **EXPERTS, n_routed_experts=12, n_group=4, topk_group=2, topk_method="group_limited_greedy",
        first_k_dense_replace=1, routed_scaling_factor=1.5, rope_parameters=MSCALE_ROPE, attention_bias=True,
    ),
    "deepseek-v3": DeepseekV3Config(
        **LATENT, **EXPERTS, n_routed_experts=12, n_group=4, topk_group=2, first_k_dense_replace=1,
        routed_scaling_factor=1.2, num_key_value_heads=6,
        rope_parameters={**MSCALE_ROPE, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "deepseek-v3-plain": DeepseekV3Config(
        **LATENT | {"q_lora_rank": None}, **EXPERTS, n_routed_experts=6, n_group=1, topk_group=1, norm_topk_prob=False,
        first_k_dense_replace=0, num_key_value_heads=6, rope_interleave=False, n_shared_experts=2,
        routed_scaling_factor=1.2,
    ),
    "glm4-moe-lite": Glm4MoeLiteConfig(
        **LATENT, **EXPERTS, n_routed_experts=8, num_key_value_heads=6, mlp_layer_types=["dense", "sparse", "dense"]
    ),
    "youtu": YoutuConfig(**LATENT, num_key_value_heads=6, embedding_initializer_range=0.2),
    "gpt_oss": GptOssConfig(
        **SMALL, head_dim=16, num_local_experts=6, num_experts_per_tok=3, sliding_window=24,
        rope_parameters={**YARN_ROPE, "truncate": False, "original_max_position_embeddings": 64},
    ),
    "gpt_oss-plain": GptOssConfig(
        **SMALL, head_dim=32, num_local_experts=4, num_experts_per_tok=4, sliding_window=40, attention_bias=False,
        layer_types=[WHOLE, NEAR, NEAR], swiglu_alpha=1.0, swiglu_limit=0.75,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}  # fmt: skip


def make(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return randomized(AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), attn_implementation="eager"))


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    """For evaluation, with what transformers makes all ones and zeros changed too."""
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if any(part in weight_name for part in ("norm", "bias", "router.scale", "expert_scale")):
                weight.add_(torch.randn_like(weight) * 0.2)
        for buffer_name, buffer in model.named_buffers():
            if "correction_bias" in buffer_name:
                buffer.add_(torch.randn_like(buffer) * 0.1)
            if "layer_scalar" in buffer_name:
                buffer.add_(torch.rand_like(buffer) - 0.5)
    return model.eval()


def save(model: PreTrainedModel, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    return directory


def reference_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


def reference_batch(model: PreTrainedModel, sequences: list[list[int]]) -> list[torch.Tensor]:
    """The logits of each, by one call: what stands behind a sequence changes nothing in it."""
    longest = max(map(len, sequences))
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences])
    with torch.no_grad():
        logits = model(ids, attention_mask=torch.ones_like(ids)).logits
    return [each[: len(ids)] for each, ids in zip(logits, sequences, strict=True)]


def some_ids(count: int, vocab: int = SMALL["vocab_size"]) -> list[int]:
    return torch.randint(3, vocab, (count,), generator=torch.Generator().manual_seed(count)).tolist()

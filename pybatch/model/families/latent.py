"""What families with multi-head latent attention have in common (DeepSeek-V2, 2024)."""

from __future__ import annotations

import math

from pybatch.model.config import MAX_WIDTH, LatentAttentionConfig, LayerConfig, MLPConfig, NormConfig
from pybatch.model.families.family import Shape
from pybatch.model.families.source import Source

# Of GGUF files, in which a head's keys and values are those of the cache.
GGUF_KEYS = {
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "qk_rope_head_dim": "rope.dimension_count",
    "qk_head_dim": "attention.key_length_mla",
    "v_head_dim": "attention.value_length_mla",
}


def latent_decoder(
    source: Source, *, context: int, query_latent: int, key_dim: int = 128, value_dim: int = 128, eps: float = 1e-6,
    tied: bool = False,
) -> Shape:  # fmt: skip
    """Layers that are all alike, with MLPs. What is given is for where the config says nothing."""
    length, bias = source.context(context), source.flag("attention_bias")
    for follows in ("head_dim", "num_key_value_heads"):
        source.get(follows)
    turning = source.integer("qk_rope_head_dim", 64, high=MAX_WIDTH)
    rope = source.rope(turning, length)
    whole = source.integer("qk_head_dim", key_dim + turning, low=turning + 1, high=MAX_WIDTH)
    key = source.integer("qk_nope_head_dim", whole - turning, high=MAX_WIDTH)
    absent = 0 if "q_lora_rank" in source else query_latent  # null: there is none
    queries = source.integer("q_lora_rank", absent, high=MAX_WIDTH, nullable=True)
    source.expect(mlp_bias=False)
    scale = source.yarn_scale() if rope.kind == "yarn" else 1.0
    attention = LatentAttentionConfig(
        num_heads=source.num_heads(),
        key_dim=key,
        value_dim=source.integer("v_head_dim", value_dim, high=MAX_WIDTH),
        latent=source.integer("kv_lora_rank", 512, high=MAX_WIDTH),
        query_latent=queries,
        rope=rope,
        interleaved=source.flag("rope_interleave", True),
        scale=scale * scale / math.sqrt(key + turning),
        bias=bias,
        out_bias=bias,
    )
    mlp = MLPConfig(width=source.mlp_width(), activation=source.activation())
    return Shape(
        layers=(LayerConfig(mixer=attention, mlp=mlp),) * source.num_layers(),
        norm=NormConfig(eps=source.norm_eps(absent=eps)),
        context=length,
        tie_word_embeddings=source.flag("tie_word_embeddings", tied),
    )

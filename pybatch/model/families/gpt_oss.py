"""gpt-oss: a window in every other layer, a sink of each head, biases everywhere, and experts whose gates and ups are
clamped."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import MAX_EXPERTS, MAX_WIDTH, MoEConfig
from pybatch.model.families.experts import GGUF_KEYS, num_experts, with_experts
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_windows
from pybatch.model.families.source import Source

CONTEXT = 131072


def shape(source: Source) -> Shape:
    for key in ("experts_per_token", "initial_context_length"):  # of the makers' own code, which others say too
        source.get(key)
    rope = source.rope(source.head_dim(64), source.context(CONTEXT), theta=150000.0)
    decoder = alike(source, context=CONTEXT, kv_heads=8, head_dim=64, eps=1e-5, rope=rope)
    bias = source.flag("attention_bias", True)
    layers = tuple(layer.with_attention(sinks=True, bias=bias, out_bias=bias) for layer in decoder.layers)
    window = source.window(absent=128)
    kinds = source.layer_types(len(layers), window)
    near = [kind == "sliding_attention" for kind in kinds] if kinds else [i % 2 == 0 for i in range(len(layers))]
    decoder = with_windows(replace(decoder, layers=layers), [window if each else 0 for each in near])
    experts = MoEConfig(
        experts=num_experts(source, 128),
        top_k=source.integer("num_experts_per_tok", 4, high=MAX_EXPERTS),
        width=source.integer("moe_intermediate_size", source.mlp_width(), high=MAX_WIDTH),  # of GGUF files
        activation="clamped_swiglu",
        alpha=source.number("swiglu_alpha", 1.702),
        limit=source.number("swiglu_limit", 7.0),
        bias=True,
        router_bias=True,
        scoring="top_k_softmax",
    )
    return with_experts(decoder, experts, [True] * len(layers))


FAMILY = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    shape=shape,
    names={"router": "mlp.router"},
    defaults={
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        }
    },
    experts_by_turns=True,
    experts_by_input=True,
    gguf=GGUFFamily(
        architecture="gpt-oss",
        keys=GGUF_KEYS,
        constants={"truncate": False},
    ),
)

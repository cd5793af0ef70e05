"""Gemma 2: norms behind the blocks too, caps of scores and logits, and a window in every other layer."""

from __future__ import annotations

import math
from dataclasses import replace

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.gemma import alike
from pybatch.model.families.llama import with_windows
from pybatch.model.families.source import Source

NAMES = {
    "mixer_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
LAYERS_OF_27B = 46  # whose scale GGUF files do not tell


def shape(source: Source) -> Shape:
    source.text("hidden_act", None)  # which transformers does not read here
    rope = source.rope(source.head_dim(256), source.context(8192))
    activation = source.activation("hidden_activation", "gelu_pytorch_tanh")
    decoder = alike(source, rope=rope, kv_heads=4, activation=activation, context=8192)
    scale, cap = attention_scale(source, LAYERS_OF_27B), soft_cap(source, "attn_logit_softcapping", 50.0)
    layers = tuple(layer.with_attention(scale=scale, soft_cap=cap) for layer in decoder.layers)
    scales = replace(decoder.scales, logits_soft_cap=soft_cap(source, "final_logit_softcapping", 30.0))
    decoder = replace(decoder, layers=layers, scales=scales)
    window = source.window(absent=4096)
    kinds = layer_kinds(source, len(layers), window, period=2)
    return with_windows(decoder, [window if kind == "sliding_attention" else 0 for kind in kinds])


def layer_kinds(source: Source, layers: int, window: int, period: int) -> list[str]:
    """One of LAYER_TYPES a layer; where the config does not say, every period-th sees all."""
    every = ["sliding_attention"] * (period - 1) + ["full_attention"]
    return source.layer_types(layers, window) or [every[layer % period] for layer in range(layers)]


def soft_cap(source: Source, key: str, absent: float) -> float:
    """0, none, where it is null."""
    return 0.0 if key in source and source.get(key) is None else source.number(key, absent)


def attention_scale(source: Source, layers_of_27b: int) -> float:
    """GGUF files leave it to the reader, as llama.cpp has it: it is that of a head, but in the model of 27B, which is
    told by its number of layers, that of hidden_size / num_attention_heads."""
    key = "query_pre_attn_scalar"
    if key not in source:
        return 1 / math.sqrt(256)
    elements = source.number(key, None, nullable=True)
    if elements is None:
        largest = source.num_layers() == layers_of_27b
        elements = source.hidden_size() / source.num_heads() if largest else float(source.head_dim())
    return 1 / math.sqrt(elements)


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    shape=shape,
    names=NAMES,
    gguf=GGUFFamily(
        architecture="gemma2",
        keys={
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        constants={"query_pre_attn_scalar": None},
    ),
)

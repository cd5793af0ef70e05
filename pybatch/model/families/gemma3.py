"""Gemma 3: as Gemma 2 without its cap of scores, with norms of q and k a head, and layers with windows that have a
rotation of their own."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import MAX_LAYERS
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.gemma import alike
from pybatch.model.families.gemma2 import NAMES, attention_scale, layer_kinds, soft_cap
from pybatch.model.families.source import Source

CONTEXT = 131072
LAYERS_OF_27B = 62
DEFAULTS = {  # of the config class: the configs of models that see leave out much
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}


def shape(source: Source) -> Shape:
    head_dim, context = source.head_dim(256), source.context(CONTEXT)
    whole = source.rope_of_kind("full_attention", head_dim, context, theta=1e6)
    near = source.rope_of_kind("sliding_attention", head_dim, context, theta=1e4)
    activation = source.activation("hidden_activation", "gelu_pytorch_tanh")
    decoder = alike(source, rope=whole, kv_heads=4, activation=activation, context=CONTEXT)
    window = source.window(absent=4096)
    period = source.integer("sliding_window_pattern", 6, high=MAX_LAYERS)
    kinds = layer_kinds(source, len(decoder.layers), window, period)
    scale = attention_scale(source, LAYERS_OF_27B)
    plain = decoder.layers[0].with_attention(scale=scale, qk_norm=True)
    layers = {"full_attention": plain, "sliding_attention": plain.with_attention(rope=near, window=window)}
    return replace(
        decoder,
        layers=tuple(layers[kind] for kind in kinds),
        scales=replace(decoder.scales, logits_soft_cap=soft_cap(source, "final_logit_softcapping", 0.0)),
    )


FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    shape=shape,
    names=NAMES,
    defaults=DEFAULTS,
    gguf=GGUFFamily(
        architecture="gemma3",
        keys={
            "final_logit_softcapping": "final_logit_softcapping",
        },
        constants={"query_pre_attn_scalar": None},
    ),
)

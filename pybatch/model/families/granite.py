"""Granite 3: a Llama with multipliers of embeddings, of what is added to the residual stream, of scores and logits."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import Scales
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, without_rope
from pybatch.model.families.source import Source

GGUF_KEYS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "shared_intermediate_size": "expert_shared_feed_forward_length",
    "rope_finetuned": "rope.scaling.finetuned",
    "mamba_d_conv": "ssm.conv_kernel",
    "mamba_d_state": "ssm.state_size",
    "mamba_n_groups": "ssm.group_count",
    "mamba_n_heads": "ssm.time_step_rank",
}


def shape(source: Source) -> Shape:
    source.get("shared_intermediate_size")  # which dense ones of Granite 4 have as intermediate_size too
    return with_multipliers(source, alike(source, context=2048))


def with_multipliers(source: Source, decoder: Shape) -> Shape:
    scale = source.number("attention_multiplier", 1.0)
    for key in GGUF_KEYS:
        if key.startswith("mamba_"):  # files of Granite 4 have them where no layer is Mamba too
            source.get(key)
    scales = Scales(
        embedding=source.number("embedding_multiplier", 1.0),
        residual=source.number("residual_multiplier", 1.0),
        logits=1 / source.number("logits_scaling", 1.0),
    )
    layers = tuple(layer.with_attention(scale=scale) for layer in decoder.layers)
    decoder = replace(decoder, layers=layers, scales=scales)
    has_rope = source.flag("rope_finetuned", True)  # by which llama.cpp says so
    return decoder if has_rope else without_rope(decoder, [True] * len(layers))


FAMILY = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="granite", keys=GGUF_KEYS, adjacent_pairs=True),
)

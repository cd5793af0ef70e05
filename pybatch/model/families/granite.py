"""Granite 3: a Llama with multipliers of embeddings, of what is added to the residual stream, of scores and logits."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import Scales
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    return with_multipliers(source, alike(source, context=2048))


def with_multipliers(source: Source, decoder: Shape) -> Shape:
    scale = source.number("attention_multiplier", 1.0)
    scales = Scales(
        embedding=source.number("embedding_multiplier", 1.0),
        residual=source.number("residual_multiplier", 1.0),
        logits=1 / source.number("logits_scaling", 1.0),
    )
    layers = tuple(layer.with_attention(scale=scale) for layer in decoder.layers)
    return replace(decoder, layers=layers, scales=scales)


FAMILY = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    shape=shape,
    gguf=GGUFFamily(
        architecture="granite",
        keys={
            "attention_multiplier": "attention.scale",
            "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale",
            "logits_scaling": "logit_scale",
        },
        adjacent_pairs=True,
    ),
)

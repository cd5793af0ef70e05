"""OLMo 1: LayerNorm without weights."""

from __future__ import annotations

from pybatch.model.config import NormConfig
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    return alike(
        source, context=2048, norm=NormConfig(kind="layer", eps=source.norm_eps("layer_norm_eps", 1e-5), weight=False)
    )


FAMILY = Family(
    model_type="olmo",
    architecture="OlmoForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="olmo", keys={"layer_norm_eps": "attention.layer_norm_epsilon"}, adjacent_pairs=True),
)

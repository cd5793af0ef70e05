"""Nemotron 3 and 4, Minitron: LayerNorm with weights around 0, MLPs without gates, half of a head turns."""

from __future__ import annotations

from pybatch.model.config import NormConfig
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    norm = NormConfig(kind="layer", eps=source.norm_eps("norm_eps", 1e-5), bias=True, offset=1.0)
    return alike(source, context=4096, partial=0.5, activation="relu2", gated=False, norm=norm)


FAMILY = Family(
    model_type="nemotron",
    architecture="NemotronForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="nemotron", keys={"norm_eps": "attention.layer_norm_epsilon"}),
)

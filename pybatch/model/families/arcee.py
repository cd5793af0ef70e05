"""Arcee's AFM: a Llama with MLPs without gates."""

from __future__ import annotations

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    return alike(source, context=4096, eps=1e-5, activation="relu2", gated=False)


FAMILY = Family(
    model_type="arcee",
    architecture="ArceeForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="arcee", adjacent_pairs=True),
)

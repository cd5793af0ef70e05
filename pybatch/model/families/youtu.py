"""Youtu: latent attention, and an MLP in every layer."""

from __future__ import annotations

from pybatch.model.families.deepseek import GGUF
from pybatch.model.families.family import Family, Shape
from pybatch.model.families.latent import latent_decoder
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    return latent_decoder(source, context=131072, query_latent=1536, tied=True)


FAMILY = Family(model_type="youtu", architecture="YoutuForCausalLM", shape=shape, gguf=GGUF)

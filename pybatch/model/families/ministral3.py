"""Ministral 3: a Mistral whose queries grow with the logarithm of their position."""

from __future__ import annotations

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_windows
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=262144, kv_heads=8, head_dim=128, eps=1e-5)
    windows = [source.window()] * len(decoder.layers)
    source.expect_layer_types(windows)
    return with_windows(decoder, windows)


FAMILY = Family(
    model_type="ministral3",
    architecture="Ministral3ForCausalLM",
    shape=shape,
    defaults={
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        }
    },
    gguf=GGUFFamily(architecture="mistral3", adjacent_pairs=True),
)

"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: fused projections, heads that turn in part, and longrope."""

from __future__ import annotations

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_windows
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=4096, partial=1.0, eps=1e-5)
    windows = [source.window()] * len(decoder.layers)
    source.expect_layer_types(windows)
    return with_windows(decoder, windows)


FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    shape=shape,
    names={"qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"},
    defaults={"original_max_position_embeddings": 4096},  # which comes before that of the scaling
    gguf=GGUFFamily(architecture="phi3"),
)

"""Phi-1, 1.5 and 2: attention and an MLP without gates side by side, behind one LayerNorm."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import NormConfig
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    norm = NormConfig(kind="layer", eps=source.norm_eps("layer_norm_eps", 1e-5), bias=True)
    decoder = alike(source, context=2048, partial=0.5, activation="gelu_new", gated=False, norm=norm)
    decoder = with_biases(decoder, qkv=True, out=True, mlp=True)
    own_norms = source.flag("qk_layernorm")
    layers = (layer.with_attention(qk_norm=own_norms, qk_norm_bias=own_norms) for layer in decoder.layers)
    return replace(decoder, layers=tuple(replace(layer, parallel=True) for layer in layers), head_bias=True)


FAMILY = Family(
    model_type="phi",
    architecture="PhiForCausalLM",
    shape=shape,
    names={
        "final_norm": "model.final_layernorm",
        "q_norm": "self_attn.q_layernorm",
        "k_norm": "self_attn.k_layernorm",
        "attention_out": "self_attn.dense",
        "mlp_norm": "input_layernorm",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    },
    gguf=GGUFFamily(architecture="phi2", keys={"layer_norm_eps": "attention.layer_norm_epsilon"}),
)

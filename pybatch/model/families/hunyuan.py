"""Hunyuan, dense: norms of q and k a head, after the rotation."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=2048, eps=1e-5, qk_norm=True)
    # What Tencent's own configs say of what is always so.
    source.expect(use_qk_norm=True, use_rotary_pos_emb=True, norm_type="rms")
    source.get("attention_head_dim")  # head_dim once more
    return replace(decoder, layers=tuple(layer.with_attention(qk_norm_last=True) for layer in decoder.layers))


FAMILY = Family(
    model_type="hunyuan_v1_dense",
    architecture="HunYuanDenseV1ForCausalLM",
    shape=shape,
    names={"q_norm": "self_attn.query_layernorm", "k_norm": "self_attn.key_layernorm"},
    gguf=GGUFFamily(architecture="hunyuan-dense"),
)

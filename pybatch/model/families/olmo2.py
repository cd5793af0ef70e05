"""OLMo 2: norms behind the blocks instead of in front, and norms of q and k over all heads at once."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike
from pybatch.model.families.source import Source

NAMES = {
    "mixer_norm": "",
    "mixer_post_norm": "post_attention_layernorm",
    "mlp_norm": "",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def shape(source: Source) -> Shape:
    decoder = alike(source, context=2048, eps=1e-5, qk_norm=True)
    return replace(decoder, layers=tuple(layer.with_attention(qk_norm_over="all") for layer in decoder.layers))


FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    shape=shape,
    names=NAMES,
    gguf=GGUFFamily(architecture="olmo2"),
)

"""Granite 4, of those models that have attention in every layer: dense, or with experts beside an MLP; with rope or
without."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import MAX_WIDTH, MLPConfig
from pybatch.model.errors import ModelError
from pybatch.model.families.family import Family, Shape
from pybatch.model.families.granite import with_multipliers
from pybatch.model.families.granitemoe import GGUF, NAMES
from pybatch.model.families.granitemoe import shape as with_shared
from pybatch.model.families.llama import alike, without_rope
from pybatch.model.families.source import Source

ATTENTION = ("attention", "full_attention")
OF_MAMBA = ("n_heads", "n_groups", "d_state", "d_head", "d_conv", "expand", "chunk_size", "conv_bias", "proj_bias")


def shape(source: Source) -> Shape:
    source.expect(normalization_function="rmsnorm")
    for key in (*(f"mamba_{each}" for each in OF_MAMBA), "time_step_limit"):  # of layers that there are none of
        source.get(key)
    kinds = source.get("layer_types") or source.get("layers_block_type")
    if not isinstance(kinds, list) or not all(kind in ATTENTION for kind in kinds):
        raise ModelError(f"{source.where}: layer_types: expected attention in every layer; Mamba is not known here")
    decoder = _dense(source) if source.get("num_local_experts") == 0 else with_shared(source)
    if len(kinds) != len(decoder.layers):
        raise ModelError(f"{source.where}: layer_types: expected {len(decoder.layers)}, one a layer, got {len(kinds)}")
    has_rope = source.get("position_embedding_type") == "rope"
    return decoder if has_rope else without_rope(decoder, [True] * len(decoder.layers))


def _dense(source: Source) -> Shape:
    source.get("num_experts_per_tok")
    decoder = with_multipliers(source, alike(source, context=2048))
    width = source.integer("shared_intermediate_size", 1024, high=MAX_WIDTH)
    mlp = MLPConfig(width=width, activation=source.activation())
    return replace(decoder, layers=tuple(replace(layer, mlp=mlp) for layer in decoder.layers))


FAMILY = Family(
    model_type="granitemoehybrid",
    architecture="GraniteMoeHybridForCausalLM",
    shape=shape,
    names={**NAMES, "gate_up": "shared_mlp.input_linear", "down": "shared_mlp.output_linear"},
    gguf=GGUF,  # dense ones are called granite there
)

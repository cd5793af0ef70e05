"""GLM-4 (0414): as the GLM-4 of 2024, with norms behind the blocks too."""

from __future__ import annotations

from pybatch.model.families import glm
from pybatch.model.families.family import Family, GGUFFamily

FAMILY = Family(
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    shape=glm.shape,
    names={
        **glm.NAMES,
        "mixer_post_norm": "post_self_attn_layernorm",
        "mlp_post_norm": "post_mlp_layernorm",
    },
    adjacent_pairs=True,
    gguf=GGUFFamily(architecture="glm4", adjacent_pairs=True),
)

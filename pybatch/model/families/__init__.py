"""What differs between families of models: one small file each. docs/families.md tells how to add one."""

from __future__ import annotations

from pybatch.model.families import (
    arcee,
    ernie4_5,
    gemma,
    gemma2,
    gemma3,
    glm,
    gpt_neox,
    helium,
    hunyuan,
    internlm3,
    llama,
    ministral,
    ministral3,
    mistral,
    nemotron,
    olmo,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_5,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
)
from pybatch.model.families.family import Family

ALL: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    phi3.FAMILY,
    smollm3.FAMILY,
    ministral.FAMILY,
    glm.FAMILY,
    ernie4_5.FAMILY,
    seed_oss.FAMILY,
    internlm3.FAMILY,
    helium.FAMILY,
    qwen3_5.FAMILY,
    arcee.FAMILY,
    hunyuan.FAMILY,
    ministral3.FAMILY,
    nemotron.FAMILY,
    olmo.FAMILY,
    phi.FAMILY,
    stablelm.FAMILY,
    starcoder2.FAMILY,
    gpt_neox.FAMILY,
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in ALL}
BY_CLASS: dict[str, Family] = {family.architecture: family for family in ALL}
BY_GGUF: dict[str, Family] = {family.gguf.architecture: family for family in ALL if family.gguf}

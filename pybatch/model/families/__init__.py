"""What differs between families of models: one small file each. docs/families.md tells how to add one."""

from __future__ import annotations

from pybatch.model.families import llama, mistral, qwen2, qwen3
from pybatch.model.families.family import Family

ALL: tuple[Family, ...] = (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)
FAMILIES: dict[str, Family] = {family.model_type: family for family in ALL}
BY_CLASS: dict[str, Family] = {family.architecture: family for family in ALL}
BY_GGUF: dict[str, Family] = {family.gguf.architecture: family for family in ALL if family.gguf}

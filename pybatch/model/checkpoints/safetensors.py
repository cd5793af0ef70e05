"""A Hugging Face directory: config.json and safetensors, in one file or in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from pybatch.model.config import config_from_hf
from pybatch.model.errors import ModelError

INDEX = "model.safetensors.index.json"


class SafetensorsCheckpoint:
    """Opens a directory; tensors are mapped when asked for and unmapped when dropped."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = config_from_hf(
            read_json(directory / "config.json"), read_json(directory / "generation_config.json"), name=directory.name
        )
        self.files = self._files()

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        if not tensor.is_floating_point() or tensor.itemsize == 1:
            raise ModelError(
                f"{self.directory}: tensor {name!r} is {tensor.dtype}; expected float32, float16 or bfloat16"
            )
        return tensor

    def _files(self) -> dict[str, Path]:
        if (self.directory / INDEX).exists():
            shards: dict[str, str] = read_json(self.directory / INDEX)["weight_map"]
            missing = sorted({shard for shard in shards.values() if not (self.directory / shard).exists()})
            if missing:
                raise ModelError(f"{self.directory}: {INDEX} names {missing[0]}, which is not there")
            return {name: self.directory / shard for name, shard in shards.items()}
        files = sorted(self.directory.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{self.directory}: expected *.safetensors beside config.json, found none")
        tensors: dict[str, Path] = {}
        for path in files:
            with safe_open(path, framework="pt") as file:
                tensors.update(dict.fromkeys(file.keys(), path))
        return tensors


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file."""
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content

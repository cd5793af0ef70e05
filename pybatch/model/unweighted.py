"""Decoders of a config alone: planned, with shapes but no memory, or filled with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pybatch.machine.folders import of_home
from pybatch.model.build import build_decoder
from pybatch.model.checkpoints.files import read_json
from pybatch.model.checkpoints.find import SMOLLM2, find_model, is_hub_name
from pybatch.model.checkpoints.formats import take_quantization
from pybatch.model.config import ModelConfig
from pybatch.model.decoder import Decoder
from pybatch.model.errors import ModelError
from pybatch.model.families.read import config_from_hf
from pybatch.model.pooling import LAST_TOKEN
from pybatch.model.rows import Rows
from pybatch.model.weights import WeightLoader, WeightPlan

SPREAD = 0.02  # standard deviation of random weights


@dataclass(frozen=True, slots=True)
class MadeRows:
    """A tensor of no file, whose rows are made when they are read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[tuple[int, ...], torch.dtype], Tensor]

    def __getitem__(self, rows: slice, /) -> Tensor:
        count = len(range(*rows.indices(self.shape[0])))
        return self.make((count, *self.shape[1:]), self.dtype)

    def release(self, rows: slice, /) -> None:
        pass

    def flattened(self) -> Rows:
        count, n, k = self.shape
        return MadeRows((count * n, k), self.dtype, self.make)


class NoCheckpoint:
    """Of a config: it has each tensor that is asked for, in the shape in which it is."""

    quantized = False
    pooling = LAST_TOKEN

    def __init__(self, config: ModelConfig, stored: torch.dtype) -> None:
        self.config, self.stored = config, stored
        self.generation_config: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return False  # where there are several ways to store tensors, the plainest

    def __getitem__(self, name: str) -> Rows:
        raise KeyError(name)

    def unread(self) -> list[str]:
        return []

    def files(self) -> list[Path]:
        return []

    def tell(self) -> None:
        pass


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (torch.randn(shape) * SPREAD).to(dtype)


class ShapePlan(WeightPlan):
    """A WeightPlan without a checkpoint."""

    def number(self, role: str, layer: int) -> float:
        return 1.0

    def tensor(self, name: str, shape: tuple[int, ...]) -> Rows:
        assert isinstance(self.checkpoint, NoCheckpoint)
        return MadeRows(shape, self.checkpoint.stored, empty)


class RandomLoader(WeightLoader):
    """A WeightLoader without a checkpoint."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> Rows:
        assert isinstance(self.checkpoint, NoCheckpoint)
        return MadeRows(shape, self.checkpoint.stored, random)


def planned_decoder(
    config: ModelConfig, dtype: torch.dtype, quantization: str | None, stored: torch.dtype = torch.bfloat16
) -> Decoder:
    """What a checkpoint of that type would be loaded as: shapes, on torch's meta device."""
    return build_decoder(ShapePlan(NoCheckpoint(config, stored), dtype, quantization), 1)


def random_decoder(
    config: ModelConfig,
    dtype: torch.dtype,
    quantization: str | None,
    device: torch.device,
    max_model_len: int,
    stored: torch.dtype = torch.bfloat16,
) -> Decoder:
    """Of the same shapes and with random weights."""
    return build_decoder(RandomLoader(NoCheckpoint(config, stored), dtype, quantization, device), max_model_len)


def stored_dtype(model: str | Path) -> torch.dtype:
    """Of the weights of what read_config takes, as they are read: of a narrow type they stay so in any precision. A
    GGUF file's blocks are read as float32. Raises ModelError."""
    path = _config_path(model)
    if not path.is_dir():
        return torch.float32
    fields = read_json(path / "config.json")
    named = fields.get("dtype") or fields.get("torch_dtype")
    return {"float32": torch.float32, "float16": torch.float16}.get(str(named), torch.bfloat16)


def read_config(model: str | Path) -> ModelConfig:
    """Of a directory, for which its config.json is enough, that file itself, a GGUF file or a name on the Hugging Face
    hub, of which no weights are loaded. Raises ModelError."""
    path = _config_path(model)
    if path.is_dir():
        fields = read_json(path / "config.json")
        take_quantization(fields, path)
        return config_from_hf(fields, read_json(path / "generation_config.json"), name=path.resolve().name)
    from pybatch.model.checkpoints.gguf_checkpoint import GGUFCheckpoint  # gguf takes a while to import

    return GGUFCheckpoint(path).config


def _config_path(model: str | Path) -> Path:
    """The directory, or the GGUF file."""
    path = of_home(model)
    if path.is_file() and path.suffix == ".json":
        return path.parent
    if not path.exists() and str(model).lower() != SMOLLM2 and isinstance(model, str) and is_hub_name(model):
        return _hub_config(model).parent
    return find_model(model)


def _hub_config(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # no such package, offline, no such model, no permission
        raise ModelError(
            f"model: {name!r} is no path here, and the Hugging Face hub did not give its config.json "
            f"({type(error).__name__}: {error})"
        ) from error

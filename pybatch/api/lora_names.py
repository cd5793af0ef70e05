"""LoRA adapters as requests and prompts name them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pybatch.engine.lora_request import LoRARequest
from pybatch.engine.sampling_params import SamplingParams

Adapters = LoRARequest | Sequence[LoRARequest | None] | None
"""One for all prompts, or one for each; None: the model alone."""


Modules = Mapping[str, str | Path] | Sequence[str] | None
"""Paths of adapters by their names, or name=path."""


def lora_modules(given: Modules) -> dict[str, str]:
    """By name, in their order; folders that are here by their whole paths. Raises ValueError for what is none."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        pairs = [(name, str(path)) for name, path in given.items()]
    else:
        parted = [str(text).partition("=") for text in ([given] if isinstance(given, str) else given)]
        pairs = [(name, path) for name, _, path in parted]
    for name, path in pairs:
        if not (isinstance(name, str) and name and path):
            raise ValueError(f"lora_modules: expected name=path, got {name!r} and {path!r}")
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"lora_modules: expected each name once, got {', '.join(name for name, _ in pairs)}")
    return {name: str(Path(path).absolute()) if Path(path).is_dir() else path for name, path in pairs}


def named_adapters(modules: Modules) -> dict[str, LoRARequest]:
    """By the names that requests call them."""
    named = enumerate(lora_modules(modules).items(), start=1)
    return {name: LoRARequest(name, number, path) for number, (name, path) in named}


def adapter_params(model: object, adapters: Mapping[str, LoRARequest]) -> dict[str, LoRARequest]:
    """The fields of SamplingParams that a request sets by naming an adapter as its model."""
    return {"lora_request": adapters[model]} if isinstance(model, str) and model in adapters else {}


def adapters_of(given: Adapters, count: int) -> list[LoRARequest | None]:
    """Of each of so many prompts. Raises ValueError or TypeError for anything else."""
    if given is None or isinstance(given, LoRARequest):
        return [given] * count
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise TypeError(f"lora_request: expected a LoRARequest, or one for each prompt, got {given!r:.80}")
    if len(given) != count:
        raise ValueError(f"lora_request: expected one, or one for each of {count} prompts, got {len(given)}")
    for each in given:
        if not isinstance(each, LoRARequest | None):
            raise TypeError(f"lora_request: expected LoRARequests, got {each!r:.80}")
    return list(given)


def with_adapters(params: Iterable[SamplingParams], adapters: Iterable[LoRARequest | None]) -> Iterator[SamplingParams]:
    """Parameters of prompts, each with its prompt's adapter."""
    for each, adapter in zip(params, adapters, strict=False):
        yield each if adapter is None or not isinstance(each, SamplingParams) else replace(each, lora_request=adapter)

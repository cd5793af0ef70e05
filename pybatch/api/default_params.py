"""Sampling parameters where none are given: those that the model's makers suggest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pybatch.engine import SamplingParams
from pybatch.model.checkpoints.files import read_json

NAMES = {name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")} | {
    "max_new_tokens": "max_tokens"
}
"""generation_config.json's names for what SamplingParams has; the same that vLLM takes from it."""


def default_params(of_model: Mapping[str, Any], source: str | Path) -> SamplingParams:
    """SamplingParams' defaults with max_tokens=None, replaced by what a generation_config.json has.

    of_model: the model's own file. source: "auto" for that, "vllm" for none, or a folder with another one. Raises
    ValueError for values that SamplingParams refuses.
    """
    if source == "vllm":
        return SamplingParams(max_tokens=None)
    config = of_model
    if source != "auto":
        path = Path(source) / "generation_config.json"
        config = read_json(path)
        if not path.is_file():
            raise ValueError(f"generation_config: expected 'auto', 'vllm' or a folder with {path.name}, got {source!r}")
    given = {ours: config[name] for name, ours in NAMES.items() if config.get(name) is not None}
    try:
        return SamplingParams(**{"max_tokens": None, **given})
    except ValueError as error:
        raise ValueError(f"generation_config.json: {error}; generation_config='vllm' leaves it unread") from error

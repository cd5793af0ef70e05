"""What an engine's answers and speed depend on, for reports."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from pybatch.engine import Engine, EngineConfig
from pybatch.engine.execution.kv_cache import kv_layout

EngineSettings = dict[str, dict[str, Any]]


def engine_settings(engine: Engine) -> EngineSettings:
    """The model's and the engine's, with what was chosen where that was left to pybatch."""
    given = vars(engine.config)
    of_model = {
        "model": str(given["model"]),
        "tokenizer": given["tokenizer"],
        "quantization": given["quantization"],
        "dtype": str(engine.decoder.dtype).removeprefix("torch."),
        "kv_cache_dtype": str(kv_layout(engine.decoder, engine.config).dtype).removeprefix("torch."),
        "weights": f"{engine.weight_bytes / 2**20:,.0f} MiB",
        "max_model_len": engine.max_model_len,
    }
    of_engine = {
        **{field.name: given[field.name] for field in fields(EngineConfig) if field.name not in of_model},
        "num_kv_blocks": engine.num_kv_blocks,
        "kv_pool": f"at most {engine.kv_cache_bytes / 2**20:,.0f} MiB",
        "device": given["device"],
        "threads": torch.get_num_threads(),
    }
    return {"Model": of_model, "Engine": of_engine}

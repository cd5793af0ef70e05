"""The attributes of spans that ask a model, by OpenTelemetry's semantic conventions of generative AI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pybatch.engine.pooling_params import PoolingParams
from pybatch.engine.sampling_params import SamplingParams

PROVIDER = "pybatch"

# Of SamplingParams, by the conventions' names. Stop sequences are the client's text, so they are left out.
PARAMS = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
    "n": "choice.count",
}


DEFAULTS = {
    name: None if field in ("max_tokens", "temperature") else getattr(SamplingParams(), field)
    for field, name in PARAMS.items()
}


def pooling_operation(params: PoolingParams) -> str:
    """The conventions have no name of their own for scores."""
    return "rerank" if params.task == "score" else "embeddings"


def model_attributes(operation: str, model: str | None, params: object) -> dict[str, Any]:
    """operation: chat, text_completion, embeddings or rerank. params: those of the request, sampling or pooling;
    what is the default is left out, but for temperature and limit."""
    asked = {name: getattr(params, field, None) for field, name in PARAMS.items()}
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        **{f"gen_ai.request.{name}": value for name, value in asked.items() if value != DEFAULTS[name]},
    }


def first_token_attributes(seconds: float | None) -> dict[str, Any]:
    """seconds: to the first token."""
    return {
        "gen_ai.latency.time_to_first_token": seconds,  # by vLLM's name
        "gen_ai.server.time_to_first_token": None if seconds is None else int(seconds * 1e9),  # as Latitude reads it
    }


def known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those that have a value."""
    return {name: value for name, value in attributes.items() if value is not None}

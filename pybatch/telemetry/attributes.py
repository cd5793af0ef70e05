"""The attributes of spans that ask a model, by OpenTelemetry's semantic conventions of generative AI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def model_attributes(operation: str, model: str | None, params: object) -> dict[str, Any]:
    """operation: chat, text_completion or embeddings. params: those of the request, sampling or pooling."""
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        **{f"gen_ai.request.{name}": getattr(params, field, None) for field, name in PARAMS.items()},
    }


def latency_attributes(ttft: float | None, seconds: float) -> dict[str, Any]:
    """ttft: to the first token. Both in seconds."""
    return {
        "gen_ai.latency.time_to_first_token": ttft,  # seconds; this and the next by vLLM's name
        "gen_ai.latency.e2e": seconds,
        "gen_ai.server.time_to_first_token": None if ttft is None else int(ttft * 1e9),  # as Latitude reads it
    }


def known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those that have a value."""
    return {name: value for name, value in attributes.items() if value is not None}

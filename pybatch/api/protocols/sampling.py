"""Sampling parameters that a request sets over those it would have otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pybatch.api.protocols.request_error import RequestError
from pybatch.engine.sampling_params import SamplingParams

TYPES = {
    field.name: str(field.type)
    for field in fields(SamplingParams)
    if field.name not in ("output_kind", "lora_request")  # the latter is a path, which the request's model stands for
}
NAMES = TYPES.keys()
"""Of what a request may set."""

_FIELDS = [field.name for field in fields(SamplingParams)]
_UNBOUND = SamplingParams(max_tokens=None)


def merged(params: SamplingParams, given: Mapping[str, Any]) -> SamplingParams:
    """The parameters with the given ones in their places. Raises RequestError, naming the parameter, for bad values."""
    if not given:
        return params
    try:
        return SamplingParams(**{**{name: getattr(params, name) for name in _FIELDS}, **given})
    except (ValueError, TypeError) as error:  # the latter of an unknown name in structured_outputs
        message = (
            str(error).removeprefix("SamplingParams: ").replace("StructuredOutputsParams: ", "structured_outputs: ")
        )
        name = message.partition(":")[0]
        raise RequestError(message, "invalid_value", name if name in NAMES else None) from None


def expect_params(given: Mapping[str, Any]) -> None:
    """Raises RequestError for values that are bad whatever the others are."""
    merged(_UNBOUND, given)


def token_biases(bias: Any) -> Any:
    """JSON has the numbers that are keys of an object as text."""
    return {token_id(key): value for key, value in bias.items()} if isinstance(bias, Mapping) else bias


def token_id(text: Any) -> Any:
    return integer(text) if isinstance(text, str) else text


def integer(text: str) -> int | str:
    """The text itself if it is no number, or one that nobody means: Python reads none of more than 4,300 digits."""
    return int(text) if len(text) < 20 and text.isascii() and text.isdecimal() else text

"""Sampling parameters that a row sets over the job's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.sampling import NAMES, TYPES, expect_params, token_biases
from pybatch.engine.arguments import expect_known, without_vllm_only
from pybatch.engine.sampling_params import SamplingParams
from pybatch.engine.standing import Standing

NESTED = "sampling_params"
RESULTS = ("logprobs", "prompt_logprobs")  # what an earlier job reported under these names is a list


def row_params(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of SamplingParams in a row, at its top or, with precedence, in an object "sampling_params".

    Where the row says nothing (null, or the empty text of a table's cell) the job's value holds. A table without types
    has its numbers, lists and objects as JSON. Raises RequestError, naming the field, for bad values and for unknown
    names in the object; at the top other names are the row's own data.
    """
    given = {name: row[name] for name in NAMES & row.keys()}
    for name in RESULTS:
        if isinstance(given.get(name), list):
            del given[name]
    at_top = set(given)
    nested = from_json(row.get(NESTED))
    if nested not in (None, ""):
        if not isinstance(nested, Mapping):
            raise RequestError(f"{NESTED}: expected an object, got {type(nested).__name__}", "invalid_type", NESTED)
        at_top -= nested.keys()
        given |= known(nested)
    params = {name: typed(name, value) for name, value in given.items() if not is_missing(value)}
    try:
        expect_params(params)
    except RequestError as error:
        if error.param not in at_top:
            raise
        hint = "a row's field of this name is a sampling parameter, so data needs another name"
        raise RequestError(f"{error}; {hint}", error.code, error.param) from None
    return params


def row_standing(row: Mapping[str, Any]) -> Standing:
    """When a row is to run beside others: "user", if it is text, "ttft_target" and "tpot_target" in seconds, which a
    table without types may have as text. Raises RequestError for other targets."""
    user = row.get("user")
    targets = {name: from_json(row.get(name)) for name in ("ttft_target", "tpot_target")}
    try:
        return Standing(
            user=user if isinstance(user, str) and user else None,
            **{name: target for name, target in targets.items() if not is_missing(target)},
        )
    except ValueError as error:
        raise RequestError(str(error), "invalid_value", str(error).partition(":")[0]) from None


def known(given: Mapping[str, Any]) -> dict[str, Any]:
    """Raises RequestError for unknown names; vLLM's that ask for nothing are left out."""
    try:
        ours = without_vllm_only(NESTED, given, SamplingParams.VLLM_ONLY)
        expect_known(NESTED, ours, NAMES)
    except TypeError as error:
        raise RequestError(str(error), "unknown_parameter", NESTED) from None
    return ours


def is_missing(value: Any) -> bool:
    return value is None or value == "" or value != value


def typed(name: str, value: Any) -> Any:
    """The value in the field's own type, as far as JSON and tables write it in another."""
    if name != "stop":
        value = from_json(value)
    if isinstance(value, float) and TYPES[name].startswith("int") and value.is_integer():
        return int(value)
    return token_biases(value) if name == "logit_bias" else value


def from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value

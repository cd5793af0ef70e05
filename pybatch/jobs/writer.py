"""Result rows: what they hold, and how they are written down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pybatch.engine import RequestOutput
    from pybatch.engine.outputs import TokenLogprobs
    from pybatch.jobs.reader import Row

RESULT_FIELDS = ("row", "response", "finish_reason", "usage", "logprobs", "prompt_logprobs", "error")


def answer(output: RequestOutput) -> dict[str, Any]:
    """The result fields of a finished request. With n > 1 those of a single sample become lists, one item a sample."""
    if output.error is not None:
        return {"error": output.error}
    samples = output.outputs
    result = {
        "response": one_or_all([sample.text for sample in samples]),
        "finish_reason": one_or_all([sample.finish_reason for sample in samples]),
        "usage": {
            "prompt_tokens": len(output.prompt_token_ids),
            "completion_tokens": sum(len(sample.token_ids) for sample in samples),
        },
    }
    if samples[0].logprobs is not None:
        result["logprobs"] = one_or_all([positions(sample.logprobs or []) for sample in samples])
    if output.prompt_logprobs is not None:
        result["prompt_logprobs"] = positions(output.prompt_logprobs)
    return result


def one_or_all(items: list[Any]) -> Any:
    return items[0] if len(items) == 1 else items


def positions(logprobs: Sequence[TokenLogprobs | None]) -> list[list[dict[str, Any]] | None]:
    """At each position the actual token, then the likeliest ones; None at a prompt's first token."""
    return [None if at is None else [{"token_id": token, **asdict(of)} for token, of in at.items()] for at in logprobs]


def result_row(row: Row, result: Mapping[str, Any]) -> dict[str, Any]:
    """The row's own fields, then its number and the result.

    A field of the row that has one of RESULT_FIELDS' names is kept as "input_<name>", so that the results of one job
    can be the input of the next.
    """
    fields = {}
    for name, value in row.fields.items():
        if name in RESULT_FIELDS:
            name = f"input_{name}"
            while name in row.fields:
                name = f"input_{name}"
        fields[name] = value
    return {**fields, "row": row.index, **result}


def result_line(row: Row, result: Mapping[str, Any]) -> bytes:
    """The result row as a line of JSON in UTF-8."""
    # An unpaired surrogate has no UTF-8 form; backslashreplace makes it the JSON escape that it came from.
    return json.dumps(result_row(row, result), ensure_ascii=False).encode(errors="backslashreplace") + b"\n"

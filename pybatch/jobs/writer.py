"""Result rows, each in the file as soon as it is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from pybatch.engine import RequestOutput
    from pybatch.engine.outputs import TokenLogprobs
    from pybatch.jobs.reader import Row

RESULT_FIELDS = ("row", "response", "finish_reason", "usage", "logprobs", "prompt_logprobs", "error")


def answer(output: RequestOutput) -> dict[str, Any]:
    """What a result row tells of a finished request. With n > 1 what there is once a sample is a list."""
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
    """At each position the actual token and then the likeliest; None before a prompt's first token."""
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


def write_row(file: BinaryIO, row: Mapping[str, Any]) -> None:
    """Writes one line and flushes it, so that whatever stops the job leaves whole lines."""
    # An unpaired surrogate has no UTF-8 form; backslashreplace makes it the JSON escape that it came from.
    file.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
    file.flush()

"""Result rows, each in the file as soon as it is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from pybatch.engine import RequestOutput
    from pybatch.jobs.reader import Row

RESULT_FIELDS = ("row", "response", "finish_reason", "usage", "error")


def answer(output: RequestOutput) -> dict[str, Any]:
    """What a result row tells of a finished request; with n > 1, response and finish_reason are lists."""
    if output.error is not None:
        return {"error": output.error}
    texts = [completion.text for completion in output.outputs]
    reasons = [completion.finish_reason for completion in output.outputs]
    return {
        "response": texts[0] if len(texts) == 1 else texts,
        "finish_reason": reasons[0] if len(reasons) == 1 else reasons,
        "usage": {
            "prompt_tokens": len(output.prompt_token_ids),
            "completion_tokens": sum(len(completion.token_ids) for completion in output.outputs),
        },
    }


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
    """One line, in a single write: into an unbuffered file, so that whatever stops the job leaves whole lines."""
    # An unpaired surrogate has no UTF-8 form; backslashreplace writes it as the JSON escape that it came from.
    file.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

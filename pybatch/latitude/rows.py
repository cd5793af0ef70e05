"""Rows of data sets as rows of jobs, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

ROW_ID = re.compile(r"[\w.~-]{1,128}", re.ASCII)
TOLD = ("row", "finish_reason", "usage", "logprobs", "prompt_logprobs", "error", "cached")  # of a result


def fields_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a row {id, input, output, expectedOutput, metadata, custom} as a job has it: text is its "prompt", a list its
    "messages", and an object's fields are its own. Beside these "row_id", and what else there is: "output",
    "expected_output", "metadata" and "custom", each with "dataset_" in front where the input has such a field.
    """
    match row["input"]:
        case dict() as fields:
            fields = dict(fields)
        case [dict(), *_] as messages:
            fields = {"messages": messages}
        case str() as text:
            fields = {"prompt": text}
        case other:
            fields = {} if other is None else {"input": other}
    rest = {
        "row_id": row["id"],
        "output": row.get("output"),
        "expected_output": row.get("expectedOutput"),
        "metadata": row.get("metadata"),
        "custom": row.get("custom") or None,
    }
    for name, value in rest.items():
        if value is not None:
            fields[name if name not in fields else f"dataset_{name}"] = value
    return fields


def row_of(result: Mapping[str, Any], id: str, trace_id: str, *, extends: bool, from_dataset: bool) -> dict[str, Any]:
    """Of a job's result, as it goes into a data set: {id, input, output, expectedOutput, metadata}.

    id: where the row has none of its own, or another row may have the same. extends: whether the result is the row with
    fields after it; else it is a document, which is the output as it is. from_dataset: the row is as fields_of has it.
    trace_id: of its trace, if it has one.
    """
    told: dict[str, Any] = {"trace_id": trace_id}
    if not extends:
        name = result.get("custom_id")  # which no other row of the job has
        own = name if isinstance(name, str) and ROW_ID.fullmatch(name) else id
        return {"id": own, "input": {"custom_id": name}, "output": dict(result), "metadata": {"pybatch": told}}
    fields = {name: value for name, value in result.items() if name not in (*TOLD, "response")}
    told = {name: result[name] for name in TOLD if name in result} | told
    kept: dict[str, Any] = {}
    if from_dataset:
        id = taken(fields, "row_id") or id
        kept = {name: taken(fields, name) for name in ("expected_output", "metadata", "custom", "output")}
    metadata = kept.get("metadata")
    row = {
        "id": id,
        "input": fields["prompt"] if fields.keys() == {"prompt"} else fields,
        "output": result.get("response"),
        "expectedOutput": kept.get("expected_output"),
        "metadata": {
            **(metadata if isinstance(metadata, dict) else {} if metadata is None else {"metadata": metadata}),
            **({} if kept.get("custom") is None else {"custom": kept["custom"]}),
            **({} if kept.get("output") is None else {"earlier_output": kept["output"]}),
            "pybatch": told,
        },
    }
    return {name: value for name, value in row.items() if value is not None}


def taken(fields: dict[str, Any], name: str) -> Any:
    """Takes out what fields_of has put there, and not the input's own field of that name."""
    return fields.pop(f"dataset_{name}" if f"dataset_{name}" in fields else name, None)

"""Rows that are in memory: a list of dicts or of prompts, or what yields them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pybatch.api.inputs import is_token_ids
from pybatch.jobs.rows import Row
from pybatch.jobs.sources.json_values import json_fields


class ListSource:
    """A Source of dicts, which are the rows, or of prompts: strings, lists of token ids, lists of messages.

    It can be read again unless the items come from an iterator.
    """

    typed = False

    def __init__(self, items: Iterable[Any], name: str) -> None:
        self.name = name
        self.items = items
        self.rereadable = isinstance(items, Sequence)

    def rows(self) -> Iterator[Row]:
        for index, item in enumerate(self.items):
            fields, error = item_fields(item)
            yield Row(index, f"row {index}", size_of(fields), fields, error)

    def digest(self) -> str | None:
        return digest_of(self.rows()) if self.rereadable else None


def item_fields(item: Any) -> tuple[dict[str, Any], str | None]:
    """A row's fields, and what is wrong with it."""
    try:
        if isinstance(item, str):
            return {"prompt": str(item)}, None
        if isinstance(item, Mapping):
            return json_fields(item.items()), None
        if isinstance(item, list | tuple) and item:
            if all(isinstance(each, Mapping) for each in item):
                return json_fields([("messages", item)]), None
            if is_token_ids(item):
                return json_fields([("prompt_token_ids", item)]), None
        return {"line": str(item)}, f"expected a dict or a string, got {type(item).__name__}"
    except (ValueError, RecursionError) as error:
        return {}, str(error)


def size_of(fields: Mapping[str, Any]) -> int:
    """About how many bytes of JSON the fields take."""
    return 2 + sum(len(name) + 6 + (len(value) if isinstance(value, str) else 8) for name, value in fields.items())


def digest_of(rows: Iterable[Row]) -> str:
    """Of the rows' JSON, with sorted names."""
    digest = hashlib.blake2b()
    for row in rows:
        text = json.dumps([row.fields, row.error], sort_keys=True, separators=(",", ":"))
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()

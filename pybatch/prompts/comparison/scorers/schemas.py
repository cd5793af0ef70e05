"""Answers that are to be JSON of a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pybatch.prompts.comparison.score import Mark

FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)


class FollowsSchema:
    """The answer is JSON that a JSON schema allows; a fence of Markdown around it does not matter."""

    fields: tuple[str, ...] = ()

    def __init__(self, name: str, path: str) -> None:
        """path: of the schema. Raises ValueError for what is none, OSError for a file that cannot be read."""
        self.name = name
        try:
            from jsonschema import SchemaError
            from jsonschema.validators import validator_for
        except ImportError:
            raise ValueError("needs the package jsonschema: pip install 'pybatch[stats]'") from None
        try:
            schema = json.loads(Path(path).read_text(encoding="utf-8"))
            kind = validator_for(schema)
            kind.check_schema(schema)
        except (ValueError, RecursionError, SchemaError) as error:
            raise ValueError(f"{path} is no JSON schema: {str(error).partition(chr(10))[0]}") from None
        self._validator = kind(schema)

    def mark(self, row: Mapping[str, Any], answer: str) -> Mark:
        fenced = FENCE.match(answer.strip())
        try:
            value = json.loads(fenced.group(1) if fenced else answer)
            fault = next(iter(self._validator.iter_errors(value)), None)
        except (ValueError, RecursionError) as error:
            return Mark(0.0, f"no JSON: {error}")
        return Mark(1.0) if fault is None else Mark(0.0, f"{fault.json_path}: {fault.message}"[:200])

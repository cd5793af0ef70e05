"""Scorers that the user writes."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pybatch.prompts.comparison.score import Mark


class Function:
    """A Python function that gets a row (a dict of its fields) and an answer, and returns a number or a bool, None for
    no score, or one of these and a text that says why."""

    fields: tuple[str, ...] = ()

    def __init__(self, name: str, function: Callable[[dict[str, Any], str], Any]) -> None:
        self.name, self._function = name, function

    def mark(self, row: Mapping[str, Any], answer: str) -> Mark:
        try:
            given = self._function(dict(row), answer)
            value, feedback = given if isinstance(given, tuple) else (given, "")
            score = None if value is None else float(value)
        except Exception as error:  # the user's code: this answer's affair
            return Mark(None, f"{self.name}: {type(error).__name__}: {error}"[:300])
        if score is not None and not math.isfinite(score):
            return Mark(None, f"{self.name}: {score} is no score")
        return Mark(score, str(feedback))


def function_of(spec: str) -> Callable[[dict[str, Any], str], Any]:
    """Of MODULE:NAME, where the module is one that Python finds, also in the working folder, or the path of a .py file.

    Raises ValueError where there is no such function; what the module's own code raises is told as one too."""
    module_name, _, name = spec.rpartition(":")
    try:
        module = of_file(module_name) if module_name.endswith(".py") else of_name(module_name)
        function = getattr(module, name, None)
    except Exception as error:
        raise ValueError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ValueError(f"{module_name} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def of_file(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None  # of a name that ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_name(name: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)

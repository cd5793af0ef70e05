"""Answers that are to name a number."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pybatch.jobs.dialects.template import Template
from pybatch.prompts.comparison.score import Mark

NUMBER = re.compile(r"[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


class Near:
    """The last number of the answer is within a tolerance of the expected one. (Models give reasons first.)"""

    def __init__(self, name: str, argument: str) -> None:
        """argument: EXPECTED or EXPECTED:TOLERANCE, where the first is text with {field}, and the second a number or a
        percentage of the expected one. Raises ValueError."""
        expected, colon, tolerance = argument.rpartition(":")
        if not colon:
            expected, tolerance = argument, "0"
        self.name, self._expected = name, Template(expected)
        self.fields = self._expected.fields
        self._relative = tolerance.endswith("%")
        try:
            self._tolerance = float(tolerance.removesuffix("%")) / (100 if self._relative else 1)
        except ValueError:
            self._tolerance = math.nan
        if not 0 <= self._tolerance < math.inf:
            raise ValueError(f"expected a tolerance such as 0.5 or 1%, got {tolerance!r}")

    def mark(self, row: Mapping[str, Any], answer: str) -> Mark:
        text = self._expected.fill(row)
        expected, found = last_number(text), last_number(answer)
        if expected is None:
            return Mark(None, f"the row has no number, but {text!r:.80}")
        if found is None:
            return Mark(0.0, f"expected {expected:g}, and there is no number")
        tolerance = self._tolerance * (abs(expected) if self._relative else 1)
        near = abs(found - expected) <= tolerance * (1 + 1e-9)
        return Mark(float(near), "" if near else f"expected {expected:g}, got {found:g}")


def last_number(text: str) -> float | None:
    """1,234.5 and -2e3 are numbers."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("\u2212", "-")) if found else None

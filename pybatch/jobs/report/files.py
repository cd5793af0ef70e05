"""Where what is told of a job goes. Imports no torch: it is checked before a model is."""

from __future__ import annotations

from dataclasses import dataclass

from pybatch.tune.cost import UNKNOWN, Prices


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where a job's report goes, its figures as JSON, and a profile of its steps: None, nowhere. prices: for what it
    cost."""

    html: str | None = None
    json: str | None = None
    prices: Prices = UNKNOWN
    profile: str | None = None

    @property
    def paths(self) -> dict[str, str]:
        """By the names of their flags."""
        named = (("report", self.html), ("json", self.json), ("profile", self.profile))
        return {f"--{name}": path for name, path in named if path is not None}

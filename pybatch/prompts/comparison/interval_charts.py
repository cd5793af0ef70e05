"""Means with their intervals, each a line of a chart, in the units of an SVG. A template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pybatch.jobs.report.charts import Tick, ticks
from pybatch.prompts.comparison.statistics import Estimate

WIDTH, LINE, LEFT, RIGHT, TOP, BOTTOM = 1040, 30, 300, 40, 8, 30
NAME = 44  # characters that fit to the left


@dataclass(frozen=True, slots=True)
class IntervalLine:
    """low, at, high: where the interval and its mean are, along the axis. color: a CSS class."""

    name: str
    y: float
    low: float
    at: float
    high: float
    color: str
    tooltip: str


@dataclass(frozen=True, slots=True)
class IntervalChart:
    """zero: where no difference is, along the axis; None for what are no differences."""

    title: str
    note: str
    height: int
    lines: Sequence[IntervalLine]
    x_ticks: Sequence[Tick]
    zero: float | None = None
    width: int = WIDTH
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP

    @property
    def bottom(self) -> int:
        return self.height - BOTTOM


@dataclass(frozen=True, slots=True)
class Shown:
    """An estimate with its name and what to say of it. color: a CSS class."""

    name: str
    estimate: Estimate
    color: str
    tooltip: str


def interval_chart(title: str, note: str, shown: Sequence[Shown], *, differences: bool = False) -> IntervalChart | None:
    """None where nothing has been estimated. differences: with a line at zero; else scores, whose axis is 0 to 1 if
    they lie there."""
    known = [each for each in shown if not math.isnan(each.estimate.mean)]
    if not known:
        return None
    ends = [end for each in known for end in bounds(each.estimate)]
    low, high = min(0.0, *ends), max(0.0 if differences else 1.0, *ends)
    if high - low < 1e-9:
        low, high = low - 0.1, high + 0.1
    marks = ticks(low, high, 8)
    low, high = marks[0], marks[-1]

    def x(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * (WIDTH - RIGHT - LEFT), 2)

    lines = [
        IntervalLine(
            each.name if len(each.name) <= NAME else f"{each.name[: NAME - 1]}…",
            TOP + LINE * (number + 0.5),
            x(bounds(each.estimate)[0]),
            x(each.estimate.mean),
            x(bounds(each.estimate)[1]),
            each.color,
            each.tooltip,
        )
        for number, each in enumerate(known)
    ]
    height = TOP + LINE * len(lines) + BOTTOM
    zero = x(0.0) if differences else None
    return IntervalChart(title, note, height, lines, [Tick(x(mark), f"{mark:.4g}") for mark in marks], zero)


def bounds(estimate: Estimate) -> tuple[float, float]:
    """Of one value there is no interval."""
    return (estimate.mean, estimate.mean) if math.isnan(estimate.low) else (estimate.low, estimate.high)

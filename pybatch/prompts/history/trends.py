"""Quantities of a prompt's runs, one beside the other in the order of time, in the units of an SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pybatch.jobs.report.charts import Chart, Tick, ticks
from pybatch.jobs.report.report import seconds, whole_number
from pybatch.prompts.comparison.statistics import Estimate
from pybatch.prompts.history.store import PromptRun
from pybatch.prompts.history.tables import cost_of_row, scorers_of
from pybatch.tune.cost import dollars

COLORS = ("first", "second", "fourth", "third")
WIDTH = 512
MOST = 100  # runs of a chart, the last ones
FEW = 6  # runs, up to which each has its date below

Value = Callable[[PromptRun], Estimate | None]


@dataclass(frozen=True, slots=True)
class Point:
    """One run: where its value is, and the ends of its interval. color: a CSS class, the version's."""

    x: float
    y: float
    low: float
    high: float
    color: str
    tooltip: str


@dataclass(frozen=True, slots=True)
class Trend:
    """A chart's frame, and what is in it."""

    frame: Chart
    points: Sequence[Point]


def trends(runs: Sequence[PromptRun]) -> list[Trend]:
    """Of one prompt: its scores, and what a row took."""
    runs = runs[-MOST:]
    made = [trend(f"Score: {scorer}", runs, score_by(scorer), short) for scorer in scorers_of(runs)]
    made += [
        trend("Input tokens a row", runs, lambda run: a_row(run, run.input_tokens), whole_number),
        trend("Output tokens a row", runs, lambda run: a_row(run, run.output_tokens), whole_number),
        trend("Latency, median", runs, lambda run: alone(run.latency_p50), seconds),
        trend("Rows with errors", runs, lambda run: alone(run.errors / run.rows), short),
        trend("Cost a row", runs, lambda run: alone(cost_of_row(run)), dollars),
    ]
    return [each for each in made if each is not None]


def colors(runs: Sequence[PromptRun]) -> dict[str, str]:
    """Of the versions."""
    versions = dict.fromkeys(run.version for run in runs)
    return {version: COLORS[number % len(COLORS)] for number, version in enumerate(versions)}


def score_by(scorer: str) -> Value:
    return lambda run: run.scores.get(scorer)


def short(value: float) -> str:
    return f"{value:.3g}"


def a_row(run: PromptRun, tokens: int) -> Estimate | None:
    return alone(tokens / (run.rows - run.errors)) if run.rows > run.errors else None


def alone(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(value, value, value, 1)


def trend(title: str, runs: Sequence[PromptRun], value: Value, show: Callable[[float], str]) -> Trend | None:
    """None where no run has a value. show: with its unit, for axis and tooltips."""
    found = [(run, of) for run in runs if (of := value(run)) is not None and not math.isnan(of.mean)]
    if not found:
        return None
    ends = [end for _, of in found for end in (of.mean, of.low, of.high) if not math.isnan(end)]
    marks = ticks(min(0.0, *ends), max(ends) or 1.0, 4)
    low, high = marks[0], marks[-1]
    frame = Chart(title, f"latest: {show(found[-1][1].mean)}", WIDTH)
    frame.y_ticks = [Tick(frame.y((mark - low) / (high - low)), show(mark)) for mark in marks]
    shade = colors(runs)
    points = []
    for number, (run, of) in enumerate(found):
        x = frame.x((number + 0.5) / len(found))
        when = datetime.fromtimestamp(run.time)
        if len(found) <= FEW or number in (0, len(found) - 1):
            frame.x_ticks.append(Tick(x, f"{when:%-d %b}"))
        y, below, above = (
            frame.y(((of.mean if math.isnan(end) else end) - low) / (high - low)) for end in (of.mean, of.low, of.high)
        )
        tooltip = f"{when:%Y-%m-%d %H:%M}\n{run.prompt}@{run.version}, {run.model}\n{run.data}: {show(of.mean)}"
        points.append(Point(x, y, below, above, shade[run.version], tooltip))
    return Trend(frame, points)

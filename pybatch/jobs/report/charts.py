"""Charts for a report: where their axes, lines and bars lie, in the units of an SVG. A template draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pybatch.api.progress import clock
from pybatch.engine.metrics import Distribution
from pybatch.jobs.report.timeline import Interval

Format = Callable[[float], str]

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 240, 56, 16, 14, 28  # the whole height, and the margins around the plot
NAMES = 22  # more at the top, for the names of marks
BARS = 40  # of a histogram, about
FEW = 10  # bars, below which there is room beside them
LONG_TAIL = 30.0  # greatest value by median, from which on a histogram's axis is logarithmic


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One quantity over time: a line, and the area under it. color: a CSS class."""

    name: str
    color: str
    line: str
    area: str


@dataclass(frozen=True, slots=True)
class Box:
    """A bar, or a part of the plot that has a tooltip."""

    x: float
    y: float
    width: float
    height: float
    tooltip: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line with a name, which stands at `text_x` and begins there or ends."""

    x: float
    name: str
    text_x: float
    anchor: str


@dataclass(slots=True)
class Chart:
    """note: what the chart comes to, in a few words."""

    title: str
    note: str
    width: int
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    bars: list[Box] = field(default_factory=list)
    tooltips: list[Box] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    height: int = HEIGHT
    top: int = TOP

    @property
    def left(self) -> int:
        return LEFT

    @property
    def right(self) -> int:
        return self.width - RIGHT

    @property
    def bottom(self) -> int:
        return self.height - BOTTOM

    def x(self, share: float) -> float:
        return round(LEFT + share * (self.right - LEFT), 2)

    def y(self, share: float) -> float:
        return round(self.bottom - share * (self.bottom - self.top), 2)


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a chart over time shows. color: a CSS class."""

    name: str
    color: str
    of: Callable[[Interval], float]


def time_chart(
    title: str,
    note: str,
    intervals: Sequence[Interval],
    quantities: Sequence[Quantity],
    show: Format,
    *,
    stacked: bool = False,
    width: int = 1040,
) -> Chart | None:
    """None if there is no interval. show: a value with its unit, for axis and tooltips."""
    if not intervals:
        return None
    chart = Chart(title, note, width)
    end = intervals[-1].end
    values = [[quantity.of(each) for each in intervals] for quantity in quantities]
    lower = [[0.0] * len(intervals) for _ in quantities]
    if stacked:
        for i in range(1, len(values)):
            lower[i] = [below + own for below, own in zip(lower[i - 1], values[i - 1], strict=True)]
    tops = [[below + own for below, own in zip(*pair, strict=True)] for pair in zip(lower, values, strict=True)]
    y_values = ticks(0, max(map(max, tops)) or 1, 5)
    chart.y_ticks = [Tick(chart.y(value / y_values[-1]), show(value)) for value in y_values]
    chart.x_ticks = [Tick(chart.x(at / end), elapsed(at, end)) for at in time_ticks(end)]
    edges = [edge for each in intervals for edge in (chart.x(each.begin / end), chart.x(each.end / end))]
    for quantity, below, top in zip(quantities, lower, tops, strict=True):
        line = [chart.y(value / y_values[-1]) for value in top for _ in range(2)]
        base = [chart.y(value / y_values[-1]) for value in below for _ in range(2)]
        chart.layers.append(
            Layer(
                quantity.name,
                quantity.color,
                path(zip(edges, line, strict=True)),
                path([*zip(edges, line, strict=True), *reversed(list(zip(edges, base, strict=True)))]) + "Z",
            )
        )
    for i, each in enumerate(intervals):
        lines = [f"{elapsed(each.begin, end)} to {elapsed(each.end, end)}"]
        lines += [f"{quantity.name}: {show(values[k][i])}" for k, quantity in enumerate(quantities)]
        x = chart.x(each.begin / end)
        box = Box(x, TOP, round(chart.x(each.end / end) - x, 2), chart.bottom - TOP, "\n".join(lines))
        chart.tooltips.append(box)
    return chart


def path(points: object) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)  # type: ignore[attr-defined]


def time_ticks(end: float) -> list[float]:
    """At whole seconds, minutes or hours, or round parts of a second, up to `end`; at most nine."""
    parts = [factor * 10.0**power for power in range(-4, 1) for factor in (1, 2, 5)]
    steps = (*parts, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    hours = max(0, math.ceil(math.log2(end / 8 / 3600))) if end > 3600 else 0
    step = next((step for step in steps if end / step <= 8), 3600 * 2**hours)
    return [i * step for i in range(int(end / step + 1e-9) + 1)]


def elapsed(seconds: float, end: float) -> str:
    """An instant of a job that takes until `end`."""
    if end >= 120:
        return clock(seconds)
    return f"{round(seconds, 2 - math.floor(math.log10(end))):g} s"


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers around low to high, at steps of 1, 2 or 5 times a power of ten."""
    step = round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def round_step(step: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def histogram(
    title: str,
    distribution: Distribution,
    show: Format,
    *,
    exact: Format | None = None,
    whole: bool = False,
    width: int = 512,
) -> Chart | None:
    """How often values came, with their median and 99th percentile; None if there are none. whole: they are whole
    numbers. show: a value with its unit, for axis and tooltips; exact: for the percentiles."""
    if not distribution.count:
        return None
    counts = [(float(round(value)) if whole else value, count) for value, count in distribution.counts()]
    low, high = counts[0][0], counts[-1][0]
    p50, p99 = distribution.quantile(0.5), distribution.quantile(0.99)
    logarithmic = low > 0 and high > LONG_TAIL * p50
    edges = log_edges(low, high) if logarithmic else even_edges(low, high, whole)
    heights = split_up(counts, edges, spread=0.0 if whole else 0.01)
    named = exact or show
    chart = Chart(title, f"p50 {named(p50)} · p99 {named(p99)}", width, top=TOP + NAMES)
    position = math.log if logarithmic else float
    first, last = position(edges[0]), position(edges[-1])

    def x(value: float) -> float:
        return chart.x(min(1.0, max(0.0, (position(value) - first) / (last - first))))

    highest = math.ceil(max(heights))
    y_values = ticks(0, highest, min(4, highest))
    chart.y_ticks = [Tick(chart.y(value / y_values[-1]), f"{value:,.0f}") for value in y_values]
    marks = decades(edges[0], edges[-1]) if logarithmic else ticks(edges[0], edges[-1], 5)
    marks = [value for value in marks if edges[0] <= value <= edges[-1] and not (whole and value % 1)]
    chart.x_ticks = [Tick(x(value), show(value)) for value in marks]
    for (begin, end), height in zip(pairwise(edges), heights, strict=True):
        if height > 0:
            bounds = (math.ceil(begin), math.floor(end)) if whole else (begin, end)
            share = height / distribution.count
            both = show(bounds[0]), show(bounds[1])
            between = both[0] if both[0] == both[1] else f"{both[0]} to {both[1]}"
            top = chart.y(height / y_values[-1])
            tooltip = f"{between}: {height:,.0f} ({share:.1%})"
            chart.bars.append(Box(x(begin), top, round(x(end) - x(begin), 2), round(chart.bottom - top, 2), tooltip))
    for name, value in (("p50", p50), ("p99", p99)):
        at = x(value)
        anchor = "end" if at > chart.right - 40 else "start"
        chart.marks.append(Mark(at, name, at + (4 if anchor == "start" else -4), anchor))
    return chart


def even_edges(low: float, high: float, whole: bool) -> list[float]:
    """Of bars of one width. Those of whole numbers lie around them."""
    step = round_step(max((high - low) / BARS, high * 0.01, 1e-9))
    if not whole:
        first, last = math.floor(low * 0.99 / step), math.ceil(high * 1.01 / step)
        return [i * step for i in range(first, last + 1)]
    step = max(1, round(step))
    first, last = int(low) // step, int(high) // step
    margin = max(0, FEW - (last - first)) // 2
    return [i * step - 0.5 for i in range(max(0, first - margin), last + margin + 2)]


def log_edges(low: float, high: float) -> list[float]:
    ratio = (high * 1.02 / (low * 0.98)) ** (1 / BARS)
    return [low * 0.98 * ratio**i for i in range(BARS + 1)]


def split_up(counts: Sequence[tuple[float, int]], edges: Sequence[float], spread: float) -> list[float]:
    """How much of each count lies between two edges. A value stands for all from (1 - spread) to (1 + spread) times
    itself."""
    heights = [0.0] * (len(edges) - 1)
    i = 0
    for value, count in counts:
        low, high = value * (1 - spread), value * (1 + spread)
        while i > 0 and edges[i] > low:
            i -= 1
        while i < len(heights) - 1 and edges[i + 1] <= low:
            i += 1
        k = i
        while k < len(heights) and (edges[k] < high or k == i):
            overlap = min(high, edges[k + 1]) - max(low, edges[k])
            heights[k] += count * (overlap / (high - low) if high > low else 1.0)
            k += 1
    return heights


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two numbers, or the powers alone where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 300 else (1,) if high / low > 1e5 else (1, 3)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]

from __future__ import annotations

import itertools
from random import Random

import pytest

from pybatch.engine.metrics import Distribution
from pybatch.jobs.report.charts import Quantity, elapsed, histogram, split_up, ticks, time_chart, time_ticks
from pybatch.jobs.report.timeline import Interval


def show(value: float) -> str:
    return f"{value:g} u"


@pytest.mark.parametrize(
    ("high", "expected"), [(1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (64, [0, 20, 40, 60, 80]), (0.03, [0, 0.01, 0.02, 0.03])]
)
def test_ticks_are_round_and_reach_the_highest_value(high: float, expected: list[float]) -> None:
    assert ticks(0, high, 5 if high != 0.03 else 4) == pytest.approx(expected)


@pytest.mark.parametrize("end", [0.0004, 0.03, 1, 7.2, 59, 100, 1_000, 10_000, 100_000, 3e6])
def test_an_axis_of_time_has_few_ticks_at_whole_units(end: float) -> None:
    at = time_ticks(end)
    assert 3 <= len(at) <= 9
    assert at[0] == 0
    assert end / 2 < at[-1] <= end
    assert len({elapsed(each, end) for each in at}) == len(at)
    if end > 600:
        assert all(each % 60 == 0 for each in at)


def interval(begin: float, end: float, output: float, prompt: float) -> Interval:
    return Interval(begin, end, prompt, output, sequences=1, kv_usage=0.5, waiting=0)


def test_layers_are_stacked_and_tooltips_cover_the_time() -> None:
    chart = time_chart(
        "Throughput",
        "",
        [interval(0, 1, 10, 30), interval(1, 4, 20, 0)],
        (Quantity("output", "first", lambda each: each.output_rate), Quantity("prompts", "second", prompt_rate)),
        show,
        stacked=True,
    )
    assert chart is not None
    low, high = chart.y_ticks[0], chart.y_ticks[-1]
    assert (low.label, high.label, low.at, high.at) == ("0 u", "40 u", chart.bottom, chart.top)
    quarter = (low.at - high.at) / 4
    first, second = (points(layer.line) for layer in chart.layers)
    assert [y for _, y in first] == pytest.approx([low.at - quarter] * 2 + [low.at - 2 * quarter] * 2)
    assert [y for _, y in second] == pytest.approx([high.at] * 2 + [low.at - 2 * quarter] * 2)
    assert first[0][0] == chart.left
    assert first[-1][0] == chart.right
    assert [box.tooltip for box in chart.tooltips] == [
        "0 s to 1 s\noutput: 10 u\nprompts: 30 u",
        "1 s to 4 s\noutput: 20 u\nprompts: 0 u",
    ]
    assert sum(box.width for box in chart.tooltips) == pytest.approx(chart.right - chart.left)
    assert time_chart("", "", [], (), show) is None


def prompt_rate(each: Interval) -> float:
    return each.prompt_rate


def points(line: str) -> list[tuple[float, float]]:
    return [tuple(map(float, point.split(","))) for point in line.removeprefix("M").split("L")]  # type: ignore[misc]


RANDOM = Random(0)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "values",
    [
        [7],
        [128] * 50,
        [1, 2, 3],
        [RANDOM.randint(1, 512) for _ in range(500)],
        [int(RANDOM.lognormvariate(3, 2)) + 1 for _ in range(500)],
    ],
    ids=["one", "equal", "small", "even", "a long tail"],
)
def test_a_histogram_has_every_value_within_its_axes(values: list[int], whole: bool) -> None:
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    chart = histogram("Length", distribution, show, whole=whole)
    assert chart is not None
    top = float(chart.y_ticks[-1].label.replace(",", ""))
    heights = [bar.height * top / (chart.bottom - chart.top) for bar in chart.bars]
    assert sum(heights) == pytest.approx(len(values), rel=0.02)
    for bar in chart.bars:
        assert chart.left <= bar.x < bar.x + bar.width <= chart.right + 0.01
        assert chart.top <= bar.y
    for before, after in itertools.pairwise(chart.bars):
        assert before.x + before.width <= after.x + 0.02
    assert 1 <= len(chart.x_ticks) <= 12
    assert chart.note == f"p50 {show(distribution.quantile(0.5))} · p99 {show(distribution.quantile(0.99))}"
    if whole and values == [1, 2, 3]:
        assert [bar.tooltip for bar in chart.bars] == ["1 u: 1 (33.3%)", "2 u: 1 (33.3%)", "3 u: 1 (33.3%)"]


def test_a_histogram_of_nothing_is_none() -> None:
    assert histogram("Length", Distribution(), show) is None


def test_a_count_is_split_where_an_edge_goes_through_its_spread() -> None:
    assert split_up([(100, 10), (150, 4)], [50, 100, 200], spread=0.1) == pytest.approx([5, 9])
    assert split_up([(100, 10)], [50, 100, 200], spread=0) == [0, 10]

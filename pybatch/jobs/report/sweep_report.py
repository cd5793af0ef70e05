"""A sweep's pictures: an HTML page with inline SVG, and a PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pybatch.jobs.disk.publishing import publish
from pybatch.jobs.report.charts import Box, Chart, Layer, Mark, Tick, path, ticks
from pybatch.jobs.report.report import seconds, template, write_page
from pybatch.machine.facts import facts
from pybatch.tune.sweep import Sweep, SweepPoint

COLORS = ("first", "second", "fourth", "fifth", "sixth", "third")  # CSS classes; more sweeps begin again
WIDTH = 1040


@dataclass(frozen=True, slots=True)
class Figure:
    """What is drawn over the batch size."""

    title: str
    note: str
    of: Callable[[SweepPoint], float]
    show: Callable[[float], str]


FIGURES = (
    Figure(
        "Throughput", "prompt and output tokens a second", lambda point: point.total_rate, lambda rate: f"{rate:,.0f}"
    ),
    Figure("Time per output token", "median", lambda point: point.tpot_p50, seconds),
    Figure("Time to first token", "median, of rows that wait for a batch too", lambda point: point.ttft_p50, seconds),
)


def size_chart(figure: Figure, sweeps: Sequence[Sweep]) -> Chart:
    """Over batch sizes, on an axis of powers of two. A mark stands at each knee of the throughput."""
    sizes = sorted({point.max_num_seqs for sweep in sweeps for point in sweep.points})
    chart = Chart(figure.title, figure.note, WIDTH, top=14 + 16 * len(sweeps) if figure is FIGURES[0] else 14)
    first, last = math.log2(sizes[0]), math.log2(sizes[-1])

    def x(size: float) -> float:
        return chart.x((math.log2(size) - first) / (last - first) if last > first else 0.5)

    most = max(figure.of(point) for sweep in sweeps for point in sweep.points)
    values = ticks(0, most or 1, 5)
    chart.y_ticks = [Tick(chart.y(value / values[-1]), figure.show(value)) for value in values]
    chart.x_ticks = [Tick(x(size), str(size)) for size in sizes]
    for number, sweep in enumerate(sweeps):
        line = [(x(point.max_num_seqs), chart.y(figure.of(point) / values[-1])) for point in sweep.points]
        chart.layers.append(Layer(sweep.name, COLORS[number % len(COLORS)], path(line), ""))
        if figure is FIGURES[0]:
            at = x(sweep.knee[0])
            right = at > chart.right - 200
            name = f"knee of {sweep.name}: {sweep.knee[0]}"
            chart.marks.append(Mark(at, name, at + (-4 if right else 4), "end" if right else "start"))
    for number, size in enumerate(sizes):
        edges = [
            (x(size) + x(other)) / 2 for other in (sizes[max(0, number - 1)], sizes[min(len(sizes) - 1, number + 1)])
        ]
        told = [f"batch {size}"] + [
            f"{sweep.name}: {figure.show(figure.of(point))}"
            for sweep in sweeps
            for point in sweep.points
            if point.max_num_seqs == size
        ]
        box = Box(edges[0], chart.top, round(edges[1] - edges[0], 2), chart.bottom - chart.top, "\n".join(told))
        chart.tooltips.append(box)
    return chart


def write_sweep_page(file: str, title: str, sweeps: Sequence[Sweep], settings: Mapping[str, Any]) -> None:
    """All at once: a file that is there is replaced. Raises OSError, with the path."""
    page = template("sweep.html").render(
        title=title,
        written=datetime.now().astimezone(),
        charts=[size_chart(figure, sweeps) for figure in FIGURES],
        knees={sweep.name: f"{sweep.knee[0]}: {sweep.knee[1]}" for sweep in sweeps},
        settings=settings,
        facts=facts(),
    )
    write_page(file, page)


def write_png(file: str, title: str, sweeps: Sequence[Sweep]) -> None:
    """Needs matplotlib, as `expect_plots` has made sure. Raises OSError, with the path."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(12, 4.8), layout="constrained")
    for axes, figure in zip(picture.subplots(1, 2), FIGURES, strict=False):
        for number, sweep in enumerate(sweeps):
            sizes = [point.max_num_seqs for point in sweep.points]
            values = [figure.of(point) for point in sweep.points]
            axes.plot(sizes, values, marker=".", color=f"C{number}", label=sweep.name)
            knee = sweep.knee[0]
            axes.plot([knee], [values[sizes.index(knee)]], marker="o", ms=9, mfc="none", color=f"C{number}")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda size, _: f"{size:g}")
        axes.set_xlabel("batch size (circles: the knee)")
        axes.set_title(f"{figure.title}, {figure.note}", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    picture.axes[0].legend(fontsize=8)
    picture.suptitle(title)
    publish(file, lambda out: picture.savefig(out, format="png", dpi=110), replace=True, tag=0)


def expect_plots() -> None:
    """Raises ValueError where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--png: needs matplotlib ({error}): pip install 'pybatch[plots]'") from error

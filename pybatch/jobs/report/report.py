"""A job's report: one HTML file that needs nothing else, not even a script or a network, and its figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from datetime import datetime
from types import TracebackType
from typing import Any, BinaryIO, Self

import jinja2

from pybatch.api.progress import BatchProgress, clock
from pybatch.engine import SamplingParams
from pybatch.engine.metrics import EngineMetrics
from pybatch.jobs.disk.publishing import publish
from pybatch.jobs.failures import FailureTally
from pybatch.jobs.job import Job
from pybatch.jobs.report.charts import Chart, Quantity, histogram, time_chart
from pybatch.jobs.report.files import ReportFiles
from pybatch.jobs.report.summary import duration, summary_figures, summary_json
from pybatch.jobs.report.timeline import Timeline
from pybatch.machine.facts import facts, readable
from pybatch.tune.cost import UNKNOWN, Prices

Sections = Mapping[str, Mapping[str, Any]]


class JobReport:
    """A context manager that watches a job and writes its report, however the job ends.

    metrics: of the engine that runs the job. settings: beside those of the sampling.
    """

    def __init__(self, files: ReportFiles, title: str, metrics: EngineMetrics, job: Job, settings: Sections) -> None:
        self._files, self._title, self._metrics, self._job, self._settings = files, title, metrics, job, settings
        self._timeline = Timeline(metrics)
        self._opened = ExitStack()
        self.finished = False  # whether every row is done
        self.fault: OSError | None = None  # why a file is missing; of two, the first

    def __enter__(self) -> Self:
        if self._files.html is not None:
            self._opened.enter_context(self._timeline.sampling())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._opened.close()
        self._job.progress.stop()
        failed = error is not None or self._job.failure is not None
        status = "ended by an error" if failed else "finished" if self.finished else "interrupted"
        for path, write in ((self._files.json, self._write_json), (self._files.html, self._write_html)):
            try:
                if path is not None:
                    write(path, status)
            except OSError as fault:
                self.fault = self.fault or fault

    def _write_json(self, path: str, status: str) -> None:
        job = self._job
        figures = summary_json(job.progress, self._metrics.summary(), job.failures, self._files.prices)
        write_json(path, {"title": self._title, "status": status, **figures})

    def _write_html(self, path: str, status: str) -> None:
        write_report(
            path,
            title=self._title,
            status=status,
            progress=self._job.progress,
            metrics=self._metrics,
            timeline=self._timeline,
            failures=self._job.failures,
            settings={**self._settings, "Sampling": sampling_settings(self._job.params)},
            facts=facts(),
            prices=self._files.prices,
        )


def write_json(path: str, figures: Mapping[str, Any]) -> None:
    """All at once: a file that is there is replaced. Raises OSError, with the path."""
    text = json.dumps(figures, indent=1, default=str) + "\n"

    def write(file: BinaryIO) -> None:
        file.write(text.encode(errors="backslashreplace"))

    publish(path, write, replace=True, tag=0)


def sampling_settings(params: SamplingParams) -> dict[str, Any]:
    """As far as they are not the default ones."""
    return {
        field.name: getattr(params, field.name)
        for field in fields(params)
        if field.name in ("temperature", "max_tokens") or getattr(params, field.name) != field.default
    }


def write_report(
    path: str,
    *,
    title: str,
    status: str,
    progress: BatchProgress,
    metrics: EngineMetrics,
    timeline: Timeline,
    failures: FailureTally,
    settings: Sections,
    facts: Mapping[str, Any],
    prices: Prices = UNKNOWN,
) -> None:
    """Writes the report, all at once: a file that is there is replaced.

    status: how the job ended, in a word or two. settings: names and values in groups; values that are None are left
    out. facts: of software and hardware, as `pybatch.machine.facts` has them. All text is escaped.

    Raises OSError, with the path, if it cannot be written.
    """
    summary = metrics.summary()
    page = template("report.html").render(
        title=title,
        status=status,
        written=datetime.now().astimezone(),
        progress=progress,
        headlines=headlines(progress),
        figures=summary_figures(progress, summary, failures, prices),
        over_time=charts_over_time(timeline, metrics),
        spreads=spreads(metrics),
        failures=list(failures),
        settings={group: readable_settings(values) for group, values in settings.items()},
        facts=readable(facts),
    )
    write_page(path, page)


def template(name: str, package: str = "pybatch.jobs.report") -> jinja2.Template:
    """A page's. package: whose templates it is among; what it includes may be here too."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(each) for each in dict.fromkeys((package, "pybatch.jobs.report"))]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def write_page(path: str, page: str) -> None:
    """All at once: a file that is there is replaced. Raises OSError, with the path."""

    def write(file: BinaryIO) -> None:
        file.write(page.encode(errors="replace"))

    publish(path, write, replace=True, tag=0)


@dataclass(frozen=True, slots=True)
class Headline:
    name: str
    figure: str
    unit: str
    more: str


def headlines(progress: BatchProgress) -> list[Headline]:
    seconds, done = progress.seconds, progress.rows_done
    tokens = progress.prompt_tokens + progress.output_tokens
    left = "" if progress.rows in (None, done) else f"of {progress.rows:,}"
    wall, unit = (clock(seconds), "") if seconds >= 60 else (f"{seconds:.2f}", "s")
    return [
        Headline("Rows", f"{done:,}", left, f"{progress.rows_cached:,} cached, {progress.rows_resumed:,} resumed"),
        Headline("Failed", f"{progress.rows_failed:,}", "", f"{progress.rows_failed / max(1, done):.1%} of the rows"),
        Headline("Wall time", wall, unit, "of this run"),
        Headline("Output", f"{progress.output_tokens / seconds:,.1f}", "tok/s", f"{progress.output_tokens:,} tokens"),
        Headline("Prompts and output", f"{tokens / seconds:,.1f}", "tok/s", f"{tokens:,} tokens"),
    ]


def charts_over_time(timeline: Timeline, metrics: EngineMetrics) -> list[Chart]:
    summary, intervals = metrics.summary(), timeline.intervals()
    blocks = metrics.peak_kv_blocks / metrics.kv_blocks
    charts = (
        time_chart(
            "Throughput",
            "tokens per second",
            intervals,
            (
                Quantity("output", "first", lambda each: each.output_rate),
                Quantity("prompts", "second", lambda each: each.prompt_rate),
            ),
            lambda rate: f"{rate:,.0f}",
            stacked=True,
        ),
        time_chart(
            "Batch",
            f"sequences in a step: {summary.batch_occupancy:.1f} in the mean, {summary.peak_batch} at most",
            intervals,
            (
                Quantity("in a step", "first", lambda each: each.sequences),
                Quantity("waiting", "third", lambda each: each.waiting),
            ),
            lambda count: f"{count:,.1f}".removesuffix(".0"),
        ),
        time_chart(
            "KV cache",
            f"share of the blocks in use: {blocks:.1%} at most",
            intervals,
            (Quantity("in use", "fourth", lambda each: 100 * each.kv_usage),),
            lambda share: f"{share:,.3g}%",
        ),
    )
    return [chart for chart in charts if chart is not None]


def spreads(metrics: EngineMetrics) -> list[Chart]:
    charts = (
        histogram("Time to first token", metrics.ttft, seconds, exact=duration),
        histogram("Time per output token", metrics.tpot, seconds, exact=duration),
        histogram("Prompt length, tokens", metrics.prompt_length, whole_number, whole=True),
        histogram("Output length, tokens", metrics.output_length, whole_number, whole=True),
    )
    return [chart for chart in charts if chart is not None]


def seconds(value: float) -> str:
    """Without digits that an axis does not need."""
    if value == 0:
        return "0"
    return f"{value * 1e3:.3g} ms" if value < 0.9995 else f"{value:.3g} s"


def whole_number(value: float) -> str:
    return f"{value:,.0f}"


def readable_settings(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else repr(value) for name, value in values.items() if value is not None
    }

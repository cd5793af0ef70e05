"""A prompt's history on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.table import Table

from pybatch.jobs.report.summary import duration
from pybatch.prompts.comparison.tables import interval
from pybatch.prompts.history.store import PromptRun, known
from pybatch.tune.cost import dollars


def history_table(runs: Sequence[PromptRun]) -> Table:
    """The newest run last. Tokens are a row's."""
    table = Table(title="Runs", title_justify="left")
    scorers = scorers_of(runs)
    priced = any(run.dollars is not None for run in runs)
    for name in ("time", "prompt", "model", "data"):
        table.add_column(name)
    costs = ["cost / row"] if priced else []
    for name in ("rows", "errors", "input / row", "output / row", "latency p50 / p95", *costs, *scorers):
        table.add_column(name, justify="right")
    for run in runs:
        answered = max(1, run.rows - run.errors)
        table.add_row(
            f"{datetime.fromtimestamp(run.time):%Y-%m-%d %H:%M}",
            f"{run.prompt}@{run.version}",
            run.model,
            run.data,
            f"{run.rows:,}",
            f"{run.errors:,}",
            f"{run.input_tokens / answered:,.1f}",
            f"{run.output_tokens / answered:,.1f}",
            f"{duration(known(run.latency_p50))} / {duration(known(run.latency_p95))}",
            *([dollars(cost_of_row(run))] if priced else []),
            *(interval(run.scores[name]) if name in run.scores else "-" for name in scorers),
        )
    return table


def scorers_of(runs: Sequence[PromptRun]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.scores))


def cost_of_row(run: PromptRun) -> float | None:
    return None if run.dollars is None or not run.rows else run.dollars / run.rows

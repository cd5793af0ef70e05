"""Runs as they come to the history: of a job whose rows fill in a prompt, and of a comparison."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pybatch.api.outcomes import Answer, Failure
from pybatch.prompts.comparison.statistics import json_number
from pybatch.prompts.history.store import History, HistoryError, PromptRun, file_for
from pybatch.prompts.prompt import Prompt
from pybatch.tune.cost import Prices, Usage

if TYPE_CHECKING:
    from pybatch.jobs.job import Job, Saved
    from pybatch.prompts.comparison.figures import Comparison
    from pybatch.prompts.comparison.task import Task


OFF = "off"  # in place of a file: nothing is recorded


class JobRecorder:
    """Watches the job of a prompt, or one after the other those of a chain's steps: rows and errors are those of the
    last one, tokens and times of all. Rows that earlier runs have answered do not count."""

    def __init__(self, prompt: Prompt, model: str, data: str, prices: Prices) -> None:
        self._prompt, self._model, self._data, self._prices = prompt, model, data, prices
        self._id = f"run {secrets.token_hex(8)}"
        self._rows = self._errors = self._input = self._output = 0
        self._seconds = 0.0
        self._latencies: dict[int, float] = defaultdict(float)

    @contextmanager
    def watching(self, job: Job) -> Iterator[None]:
        self._rows = self._errors = 0
        job.watchers.append(self._take)
        try:
            yield
        finally:
            job.watchers.remove(self._take)
            self._seconds += job.progress.seconds

    def _take(self, saved: Saved) -> None:
        self._rows += 1
        self._errors += isinstance(saved.outcome, Failure)
        if isinstance(saved.outcome, Answer) and not saved.cached:
            self._input += saved.outcome.prompt_tokens
            self._output += saved.outcome.output_tokens
        if times := [each.inference_time for each in saved.metrics if each.inference_time is not None]:
            self._latencies[saved.row.index] += max(times)

    def run(self) -> PromptRun | None:
        """None if no row has run."""
        if not self._rows:
            return None
        latencies = list(self._latencies.values())
        middle, slow = (float(np.quantile(latencies, share)) if latencies else None for share in (0.5, 0.95))
        cost = self._prices.cost(Usage(self._seconds, self._rows, self._input, self._output))
        return PromptRun(
            self._id,
            time.time(),
            "run",
            self._prompt.name,
            self._prompt.version,
            Path(self._model).name,
            Path(self._data).name,
            self._rows,
            self._errors,
            self._input,
            self._output,
            self._seconds,
            middle,
            slow,
            None if cost is None else cost.dollars,
        )


def runs_of(comparison: Comparison, task: Task, data: str) -> list[tuple[Prompt, PromptRun]]:
    """Of each variant of a comparison; scored again, its runs' places are taken. data: the rows' name."""
    costs = [comparison.prices.cost(each.usage) for each in comparison.variants]
    runs = [
        PromptRun(
            f"compare {task.key} {each.name}",
            time.time(),
            "compare",
            each.prompt,
            each.version,
            Path(each.model).name,
            Path(data).name,
            each.answers,
            each.errors,
            each.input_tokens,
            each.output_tokens,
            each.seconds,
            json_number(each.latency(0.5)),
            json_number(each.latency(0.95)),
            None if cost is None else cost.dollars,
            {scorer: of[each.name] for scorer, of in comparison.estimates.items()},
        )
        for each, cost in zip(comparison.variants, costs, strict=True)
    ]
    return [(variant.prompt, run) for variant, run in zip(task.variants, runs, strict=True)]


def record(of: Iterable[tuple[Prompt, PromptRun]], given: str | None, tell: Callable[[str], object]) -> None:
    """Adds runs to the history. given: its file; OFF, none; None: file_for each prompt. Nothing is lost where it cannot
    be written but the record, which is told."""
    places: dict[Path, list[PromptRun]] = defaultdict(list)
    for prompt, run in of:
        path = file_for(prompt) if given is None else None if given == OFF else Path(given)
        if path is not None:
            places[path].append(run)
    for path, runs in places.items():
        try:
            History(path).add(runs)
        except (HistoryError, OSError) as error:
            tell(f"Not recorded: {error}")

"""The jobs of a comparison, all in one folder: the variants' answers, and the judges' verdicts."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pybatch.api.inputs import expect_tokenizer
from pybatch.api.llm import LLM, given_to
from pybatch.api.progress_reporter import ProgressReporter
from pybatch.api.session import Session
from pybatch.engine import SamplingParams
from pybatch.jobs.check import check_rows
from pybatch.jobs.checked_rows import CheckedRows, RowOptions
from pybatch.jobs.preparation import Preparation, prepare
from pybatch.jobs.results.destination import Destination
from pybatch.jobs.row_runner import RowRunner
from pybatch.jobs.sources.read_ahead import ReadAhead
from pybatch.prompts.comparison.asking import AskingDialect, AskingRows
from pybatch.prompts.comparison.latitude import AtLatitude
from pybatch.prompts.comparison.timings import Timings
from pybatch.prompts.comparison.variants import Model


class ComparisonStoppedError(RuntimeError):
    """The comparison was asked to stop. The same one goes on where it was, if its folder stays."""


class Engines:
    """One model at a time: another one takes the place of the last."""

    def __init__(self, load: Callable[[str | Path], LLM]) -> None:
        self._load = load
        self._name: str | Path | None = None
        self._llm: LLM | None = None

    def session(self, model: Model) -> Session:
        if isinstance(model, LLM):
            return model.session
        if self._llm is None or self._name != model:
            self._llm = None
            gc.collect()  # before the next one takes its memory
            self._llm, self._name = self._load(model), model
        return self._llm.session


@dataclass(frozen=True)
class Running:
    """How jobs run. stopped: asked between two steps. grace: seconds that running rows have then. tell: prints a line.
    show_progress: a bar, where standard error is a terminal; lines: else a line now and then. latitude: where answers
    are traces, too."""

    stopped: Callable[[], bool] = lambda: False
    grace: float = 0.0
    tell: Callable[[str], object] = lambda line: None
    show_progress: bool = False
    lines: bool = False
    latitude: AtLatitude | None = None


@dataclass(frozen=True)
class JobFolder:
    """engine: the arguments of LLM that all models have. fresh, retry_errors: as a job's."""

    path: Path
    engine: Mapping[str, Any]
    engines: Engines
    running: Running = field(default_factory=Running)
    fresh: bool = False
    retry_errors: bool = False

    @property
    def timings(self) -> Timings:
        return Timings(self.path / "timings.jsonl")

    def run(
        self,
        name: str,
        title: str,
        rows: AskingRows,
        model: Model,
        sampling: Mapping[str, Any],
        *,
        params_for: Callable[[Session], Mapping[str, Any]] = lambda session: {},
        timed: bool = False,
    ) -> list[dict[str, Any]]:
        """The results of all rows, in their order, once they are there.

        name: of the file, without its ending. sampling: fields of SamplingParams that are given; params_for: others,
        that depend on the model alone. timed: the time of each row is kept. Raises what prepare raises, and
        ComparisonStoppedError.
        """
        checked = check_rows(rows, AskingDialect(), SamplingParams(**{"max_tokens": None, **sampling}))
        output = self.path / f"{name}.jsonl"
        engine = given_to(model) if isinstance(model, LLM) else self.engine
        with prepare(
            CheckedRows(rows, AskingDialect(), checked, RowOptions()),
            Destination(str(output), fresh=self.fresh, retry_errors=self.retry_errors),
            model=engine.get("model", model),
            engine=engine,
            sampling=sampling,
        ) as prepared:
            if not prepared.finished:
                for line in checked.lines():
                    self.running.tell(line)
                self._answer(prepared, title, model, {**sampling}, params_for, name if timed else None)
        return list(read_lines(output))

    def _answer(
        self,
        prepared: Preparation,
        title: str,
        model: Model,
        sampling: Mapping[str, Any],
        params_for: Callable[[Session], Mapping[str, Any]],
        timed: str | None,
    ) -> None:
        running = self.running
        session = self.engines.session(model)
        params = replace(session.default_params, **sampling, **params_for(session))
        progress = prepared.progress(session, params)
        job = prepared.start(expect_tokenizer(session.tokenizer), params, progress, arithmetic=session.arithmetic)
        if job.journal.done:
            running.tell(f"Going on: {job.journal.done:,} of {prepared.checked.rows:,} answers are there.")
        with ExitStack() as opened:
            pending = opened.enter_context(ReadAhead(job.pending(), prepared.source.name))
            answers = opened.enter_context(prepared.answers(session, None))
            if timed is not None:
                opened.enter_context(self.timings.of(job, timed))
                if running.latitude is not None:
                    name = str(given_to(model)["model"] if isinstance(model, LLM) else model)
                    opened.enter_context(running.latitude.traced(job, name))
            if running.show_progress:
                opened.enter_context(ProgressReporter(title, progress, lines=running.lines))
            try:
                finished = RowRunner(session, job, pending, answers, running.stopped, running.grace).run()
            except BaseException:
                prepared.publish_what_there_is()
                raise
            job.results.publish(finished=finished)
        if not finished:
            raise ComparisonStoppedError(f"{job.journal.done:,} of {prepared.checked.rows:,} answers are saved")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)

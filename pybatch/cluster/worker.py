"""A worker of a cluster: an engine that answers what a driver sends. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pybatch
from pybatch.api.engine_args import EngineArgs
from pybatch.api.inputs import Encoded
from pybatch.api.opening import open_session
from pybatch.api.scoring import Scorer
from pybatch.api.settings import EngineSettings
from pybatch.engine import RequestOutput, SamplingParams
from pybatch.engine.metrics import EngineMetrics
from pybatch.engine.pooling_params import Params
from pybatch.engine.standing import ORDINARY, Standing
from pybatch.jobs.fingerprint import model_fingerprint
from pybatch.machine.threads import usable_cores
from pybatch.model.checkpoints.find import find_model

GATHER = 0.1  # seconds in which a full batch gathers outcomes, so that many workers do not keep the driver busy
LONGEST = 0.25  # seconds without an outcome, after which a worker asks for more rows


@dataclass(frozen=True, slots=True)
class Request:
    """A row for an engine. index: the row's number in its job, which seeds its draws."""

    index: int
    prompt: Encoded
    params: Params
    standing: Standing = ORDINARY


@dataclass(frozen=True, slots=True)
class Loaded:
    """A worker that is ready, as its Session and engine say."""

    max_model_len: int
    kv_blocks: int
    max_num_seqs: int
    default_params: SamplingParams
    arithmetic: str
    settings: EngineSettings
    scorer: Scorer
    unpacked: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What has happened since the report before. finished: rows by their numbers. steps: arguments of
    EngineMetrics.step."""

    finished: list[tuple[int, RequestOutput]]
    steps: list[dict[str, Any]]
    output_tokens: int


class StepLog:
    """Keeps the steps of an engine for the next report."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._metrics = metrics
        self._count = metrics.step
        self._steps: list[dict[str, Any]] = []
        self._output_tokens = 0
        metrics.step = self._step  # type: ignore[method-assign]

    def _step(self, **step: Any) -> None:
        self._count(**step)
        self._steps.append(step)

    def report(self, finished: list[tuple[int, RequestOutput]]) -> Report:
        steps, self._steps = self._steps, []
        before, self._output_tokens = self._output_tokens, self._metrics.output_tokens
        return Report(finished, steps, self._output_tokens - before)


class Worker:
    """Loads a model once, and answers with it."""

    def load(self, version: str, arguments: Mapping[str, Any], fingerprint: str, cpus: int) -> Loaded:
        """version, fingerprint: the driver's pybatch and its model's. arguments: EngineArgs'. cpus: that the worker may
        use, where arguments say nothing of threads.

        Raises ValueError if this machine has another model or pybatch, and what loading raises.
        """
        if version != pybatch.__version__:
            raise ValueError(f"expected pybatch {version}, which the driver has, got {pybatch.__version__}")
        arguments = {"threads": max(1, min(cpus, usable_cores())), **arguments}
        path = find_model(arguments["model"])
        if model_fingerprint(path) != fingerprint:
            raise ValueError(f"{path}: the model's files differ from those that the driver has")
        self._session = session = open_session(EngineArgs(**arguments))
        self._log = StepLog(session.engine.metrics)
        self._full = session.engine.config.max_num_seqs
        self._running: dict[int, str] = {}  # a row's number -> the engine's name for its request
        self._finished: list[tuple[int, RequestOutput]] = []
        return Loaded(
            session.max_model_len,
            session.engine.num_kv_blocks,
            session.config.max_num_seqs,
            session.default_params,
            session.arithmetic,
            session.settings,
            session.scorer,
            session.unpacked,
        )

    def exchange(self, requests: Sequence[Request], withdrawn: Sequence[int]) -> Report:
        """Takes requests in, and reports those that have finished, whichever call brought them.

        withdrawn: numbers of rows that are no longer wanted. The engine runs inside of this call alone: it goes on
        without a pause if the next call has come before this one returns.

        Raises what the engine's step raises; all requests are lost then.
        """
        for index in withdrawn:
            if index in self._running:
                self._session.abort(self._running.pop(index))
        for each in requests:
            receive = partial(self._finish, each.index)
            self._running[each.index] = self._session.add(
                each.prompt, each.params, receive, index=each.index, standing=each.standing
            )
        self._forget_finished()
        start = time.monotonic()
        while self._running:
            seconds = time.monotonic() - start
            if seconds > (GATHER if self._finished else LONGEST):
                break
            if self._finished and len(self._running) < self._full:  # there is room for others
                break
            self._session.step()
            self._forget_finished()
        finished, self._finished = self._finished, []
        return self._log.report(finished)

    def _finish(self, index: int, output: RequestOutput) -> None:
        self._finished.append((index, replace(output, prompt=None)))  # the driver has the text

    def _forget_finished(self) -> None:
        for index, _ in self._finished:
            self._running.pop(index, None)

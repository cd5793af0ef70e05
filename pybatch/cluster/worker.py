"""A worker of a cluster: an engine that answers what a driver sends. Knows nothing of Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pybatch
from pybatch.api.engine_args import EngineArgs
from pybatch.api.inputs import Encoded
from pybatch.api.outcomes import Outcome, outcome_of
from pybatch.api.session import Session
from pybatch.engine import RequestOutput, SamplingParams
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
    params: SamplingParams


class Worker:
    """Loads a model once, and answers with it."""

    def load(self, version: str, arguments: Mapping[str, Any], fingerprint: str, cpus: int) -> int:
        """version, fingerprint: the driver's pybatch and its model's. arguments: EngineArgs'. cpus: that the worker may
        use, where arguments say nothing of threads. Returns the process's id.

        Raises ValueError if this machine has another model or pybatch, and what loading raises.
        """
        if version != pybatch.__version__:
            raise ValueError(f"expected pybatch {version}, which the driver has, got {pybatch.__version__}")
        arguments = {"threads": max(1, min(cpus, usable_cores())), **arguments}
        path = find_model(arguments["model"])
        if model_fingerprint(path) != fingerprint:
            raise ValueError(f"{path}: the model's files differ from those that the driver has")
        self._session = Session.open(EngineArgs(**arguments))
        self._full = self._session.engine.config.max_num_seqs
        self._running: dict[int, str] = {}  # a row's number -> the engine's name for its request
        self._finished: list[tuple[int, RequestOutput]] = []
        return os.getpid()

    def exchange(self, requests: Sequence[Request], withdrawn: Sequence[int]) -> list[tuple[int, Outcome]]:
        """Takes requests in, and returns the outcomes of those that have finished, whichever call brought them.

        withdrawn: numbers of rows that are no longer wanted. The engine runs inside of this call alone: it goes on
        without a pause if the next call has come before this one returns.

        Raises what the engine's step raises; all requests are lost then.
        """
        for index in withdrawn:
            if index in self._running:
                self._session.abort(self._running.pop(index))
        for each in requests:
            request_id = self._session.add(
                each.prompt, each.params, partial(self._finish, each.index), index=each.index
            )
            self._running[each.index] = request_id
        self._settle()
        start = time.monotonic()
        while self._running:
            seconds = time.monotonic() - start
            if seconds > (GATHER if self._finished else LONGEST):
                break
            if self._finished and len(self._running) < self._full:  # room for others
                break
            self._session.step()
            self._settle()
        finished, self._finished = self._finished, []
        return [(index, outcome_of(output, self._session.tokenizer)) for index, output in finished]

    def _finish(self, index: int, output: RequestOutput) -> None:
        self._finished.append((index, output))

    def _settle(self) -> None:
        for index, _ in self._finished:
            self._running.pop(index, None)

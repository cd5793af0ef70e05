"""A trace of an engine's steps by torch's profiler."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pybatch.engine.engine import Engine

logger = logging.getLogger(__name__)


def prepare() -> None:
    """The first profile of a process imports for seconds. Done before, on another thread, no step waits for that."""
    with profile(activities=[ProfilerActivity.CPU]):
        pass


class StepProfile:
    """Records steps as a Chrome trace (chrome://tracing, Perfetto), with the ranges step, schedule, run, sample and
    update; on a GPU they are NVTX ranges too.

    The engine's methods are wrapped while it runs, so that steps cost nothing more at other times. Begin and end it on
    the thread that steps the engine: the profiler sees that one.

    file: where the trace goes. steps: how many to record; None: until `end`.
    """

    def __init__(self, engine: Engine, file: Path, steps: int | None = None) -> None:
        self.file, self.left = file, steps
        self.running = False
        self._engine, self._restore = engine, ExitStack()
        self._cuda = engine.decoder.device.type == "cuda"
        self._profile = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])])

    def begin(self) -> None:
        engine: Any = self._engine
        for owner, method, name in (
            (engine, "_schedule", "schedule"),
            (engine._computer.runner, "run", "run"),
            (engine._computer.sampler, "sample", "sample"),
            (engine, "_update", "update"),
        ):
            self._wrap(owner, method, self._named(name, getattr(owner, method)))
        self._wrap(engine, "step", self._counted(self._named("step", engine.step)))
        self._profile.start()
        self.running = True

    def end(self) -> None:
        """Writes the trace. Does nothing if it has ended."""
        if not self.running:
            return
        self.running = False
        self._restore.close()
        self._profile.stop()
        partial = self.file.with_name(f".{self.file.name}")
        self._profile.export_chrome_trace(str(partial))
        os.replace(partial, self.file)

    def _end_in_step(self) -> None:
        """That the trace cannot be written is no fault of the step."""
        try:
            self.end()
        except (OSError, RuntimeError):
            logger.exception("the profile could not be written")

    def _wrap(self, owner: Any, method: str, function: Callable[..., Any]) -> None:
        setattr(owner, method, function)
        self._restore.callback(delattr, owner, method)

    def _named(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as ranges:
                ranges.enter_context(record_function(name))
                if self._cuda:
                    ranges.enter_context(torch.cuda.nvtx.range(name))
                return function(*args, **kwargs)

        return run

    def _counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def run() -> Any:
            before = self._engine.metrics.steps
            try:
                return step()
            finally:
                if self.left is not None:
                    self.left -= self._engine.metrics.steps - before  # one that had nothing to run is none
                    if self.left <= 0:
                        self._end_in_step()

        return run

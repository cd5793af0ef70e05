"""Profiles of the server's engine, on demand."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from pybatch.api.async_llm import AsyncLLM
from pybatch.api.protocols.request_error import RequestError
from pybatch.engine.profile import StepProfile, prepare


class Profiler:
    """One profile at a time, each in a file of its own in the folder."""

    def __init__(self, llm: AsyncLLM, folder: Path) -> None:
        self.llm, self.folder = llm, folder
        self.profile: StepProfile | None = None

    async def start(self, steps: int | None) -> Path:
        """Returns the file that the trace will be in. Raises RequestError if a profile is under way."""
        if self.profile is None:
            await asyncio.to_thread(prepare)
        return await asyncio.wrap_future(self.llm.thread.call(lambda: self._start(steps)))

    async def stop(self) -> Path:
        """Returns the file that the trace is in. Raises RequestError if there has been no profile."""
        return await asyncio.wrap_future(self.llm.thread.call(self._stop))

    # ---- on the engine's thread ----

    def _start(self, steps: int | None) -> Path:
        if self.profile is not None and self.profile.running:
            raise RequestError(f"a profile is under way, into {self.profile.file}")
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"pybatch-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06}.json"
        profile = StepProfile(self.llm.engine, file, steps)
        profile.begin()
        self.profile = profile
        return file

    def _stop(self) -> Path:
        if self.profile is None:
            raise RequestError("no profile has been started")
        self.profile.end()
        return self.profile.file

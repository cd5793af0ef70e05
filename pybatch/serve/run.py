"""The server as a process: its socket, its model, and uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import uvicorn

from pybatch.api.async_llm import AsyncLLM
from pybatch.serve.app import create_app
from pybatch.serve.guard.binding import is_local, raise_open_files_limit, url
from pybatch.serve.guard.connection import IDLE_SECONDS, Connection
from pybatch.serve.guard.keys import Keys
from pybatch.serve.monitoring.log import write_log
from pybatch.serve.monitoring.monitoring import Monitoring
from pybatch.serve.service import Service
from pybatch.serve.settings import ServerSettings
from pybatch.serve.store import Storage

logger = logging.getLogger(__name__)

BACKLOG = 2048
CLOSE_SECONDS = 5  # for connections to close when all requests have ended
FAULT_SECONDS = 2.0  # for answers to go out when the engine has ended


class EngineEndedError(RuntimeError):
    """The engine's thread has ended, by a fault of the machine: nothing can be answered any more."""


def run(
    llm: AsyncLLM,
    settings: ServerSettings,
    keys: Keys,
    bound: socket.socket,
    storage: Storage,
    *,
    announce: Callable[[str], object],
    stopping: Callable[[], bool],
) -> None:
    """Serves until it is told to stop, and stops in order. announce: gets the server's address once it listens.

    Raises EngineEndedError.
    """
    raise_open_files_limit()
    write_log(settings.log_level)
    service = Service(llm, settings, storage)
    service.requests.stopping = stopping
    server = Server(service, keys, bound)
    bound.listen(BACKLOG)
    announce(url(settings, bound))
    try:
        server.run(sockets=[bound])
    finally:
        if settings.uds is not None:
            Path(settings.uds).unlink(missing_ok=True)
    if server.fault is not None:
        raise EngineEndedError(str(server.fault))


class Server(uvicorn.Server):
    """Stops when its service does. The listening socket is open until all requests have ended, so that whoever asks
    /ready meanwhile gets an answer."""

    def __init__(self, service: Service, keys: Keys, bound: socket.socket) -> None:
        self.app = create_app(service, keys, local=is_local(bound))
        monitoring: Monitoring = self.app.state.monitoring
        config = uvicorn.Config(
            monitoring.around(self.app),
            http=Connection,
            ws="none",
            log_level="warning",
            access_log=False,  # the monitoring's
            backlog=BACKLOG,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            ssl_certfile=service.settings.ssl_certfile,
            ssl_keyfile=service.settings.ssl_keyfile,
        )
        super().__init__(config)
        self.service = service
        self.fault: RuntimeError | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command's."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second. Returns True when the server is to end."""
        ending = await super().on_tick(counter)
        requests, seconds = self.service.requests, self.service.settings.shutdown_timeout
        try:
            await self.service.llm.check_health()
        except RuntimeError as error:
            self.fault, seconds = error, FAULT_SECONDS
            requests.stopping = lambda: True
        if not requests.stopping():
            return ending
        await asyncio.gather(requests.drain(seconds), call_all(self.service.at_shutdown, seconds))
        return True


async def call_all(callbacks: Sequence[Callable[[], Awaitable[object]]], seconds: float) -> None:
    """At once, each for so many seconds at most."""

    async def call(callback: Callable[[], Awaitable[object]]) -> None:
        async with asyncio.timeout(seconds):
            await callback()

    for outcome in await asyncio.gather(*map(call, callbacks), return_exceptions=True):
        if isinstance(outcome, Exception):
            logger.error("the server's end: %r", outcome, exc_info=outcome)

"""All that watches one server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Self

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from pybatch.serve.monitoring.history import History
from pybatch.serve.monitoring.http import HttpLoad
from pybatch.serve.monitoring.log import log_request
from pybatch.serve.monitoring.middleware import Watch
from pybatch.serve.monitoring.profiler import Profiler
from pybatch.serve.monitoring.prometheus.engine import EngineCollector
from pybatch.serve.monitoring.prometheus.machine import MachineCollector
from pybatch.serve.monitoring.prometheus.server import ServerCollector
from pybatch.serve.service import Service
from pybatch.serve.watched import Watched


class Monitoring:
    """Watches while it is entered as an asynchronous context manager."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.http = HttpLoad()
        self.history = History(service.llm)
        self.ended: list[Callable[[Watched], object]] = [log_request]
        self.traces = None
        if service.settings.sends_traces:
            from pybatch.serve.monitoring.traces import Traces, senders

            self.traces = Traces(senders(service.settings))
            self.ended.append(self.traces.record)
        folder = service.settings.profile
        self.profiler = None if folder is None else Profiler(service.llm, Path(folder))
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(service.llm, service.names[0]))
        self.registry.register(ServerCollector(service, self.http))
        self.registry.register(MachineCollector([service.storage.folder]))

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application, its requests watched."""
        return Watch(app, self.http, self.ended)

    async def __aenter__(self) -> Self:
        self.history.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self.history.close()
        if self.traces is not None:
            self.traces.close()


def monitoring_of(request: Request) -> Monitoring:
    monitoring: Monitoring = request.app.state.monitoring
    return monitoring


Monitored = Annotated[Monitoring, Depends(monitoring_of)]
"""The type of a route's argument that is the server's monitoring."""

"""All that watches one server."""

from __future__ import annotations

from typing import Annotated, Self

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from pybatch.serve.monitoring.history import History
from pybatch.serve.monitoring.http import HttpLoad
from pybatch.serve.monitoring.middleware import Watch
from pybatch.serve.monitoring.prometheus.engine import EngineCollector
from pybatch.serve.monitoring.prometheus.machine import MachineCollector
from pybatch.serve.monitoring.prometheus.server import ServerCollector
from pybatch.serve.service import Service


class Monitoring:
    """Watches while it is entered as a context manager."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.http = HttpLoad()
        self.history = History(service.llm)
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(service.llm, service.names[0]))
        self.registry.register(ServerCollector(service, self.http))
        self.registry.register(MachineCollector([service.storage.folder]))

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application, its requests watched."""
        return Watch(app, self.http)

    def __enter__(self) -> Self:
        self.history.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.history.close()


def monitoring_of(request: Request) -> Monitoring:
    monitoring: Monitoring = request.app.state.monitoring
    return monitoring


Monitored = Annotated[Monitoring, Depends(monitoring_of)]
"""The type of a route's argument that is the server's monitoring."""

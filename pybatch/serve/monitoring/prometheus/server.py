"""The server's own metrics: HTTP and batches."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

import pybatch
from pybatch.engine.standing import BACKGROUND
from pybatch.serve.monitoring.http import HttpLoad
from pybatch.serve.monitoring.prometheus.families import LATENCY, by, counter, gauge, histogram
from pybatch.serve.service import Service


class ServerCollector(Collector):
    def __init__(self, service: Service, http: HttpLoad) -> None:
        self.service, self.http = service, http

    def collect(self) -> Iterator[Metric]:
        yield gauge("server_info", "Always 1.", [({"version": pybatch.__version__, "model": self.service.names[0]}, 1)])
        yield gauge("http_requests_in_flight", "Requests that are being answered.", [({}, len(self.http.open))])
        counts = self.http.counts.copy().items()
        yield counter(
            "http_requests",
            "Requests that have ended. status: 0 if the client went away before it got one. key: the API key's name.",
            [
                ({"method": method, "route": route, "status": str(status), "key": key}, count)
                for (method, route, status, key), count in counts
            ],
        )
        yield histogram(
            "http_request_seconds",
            "From a request to the end of its response.",
            LATENCY,
            by("route", self.http.seconds.copy()),
        )
        ttft = by("route", self.http.ttft.copy())
        yield histogram("http_time_to_first_token_seconds", "Of requests that are no rows of batches.", LATENCY, ttft)
        yield from self.batches()

    def batches(self) -> Iterator[Metric]:
        totals = self.service.batches.totals()
        rows = {"completed": totals.rows_completed, "failed": totals.rows_failed}
        yield gauge("batches", "Batches, by status.", by("status", totals.by_status))
        yield gauge("batch_rows", "Rows done, of all batches that are still known.", by("outcome", rows))
        counts = self.service.llm.thread.open_priorities()
        background = sum(count for priority, count in counts.items() if priority >= BACKGROUND)
        kinds = {"interactive": counts.total() - background, "batch": background}
        yield gauge("requests_open", "Requests that the engine has, waiting and running.", by("kind", kinds))

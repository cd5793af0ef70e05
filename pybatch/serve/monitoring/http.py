"""The HTTP requests of now and those that have ended."""

from __future__ import annotations

from collections import Counter, defaultdict, deque

from pybatch.engine.metrics import Distribution
from pybatch.serve.watched import Watched

KEPT = 100  # requests that have ended and are still shown
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpLoad:
    """Counts requests, and remembers those that ask the model. Its memory does not grow with requests served: labels
    are the server's own routes and the names of its keys.

    counts: by method, route, status and key. seconds, ttft: by route.
    """

    def __init__(self) -> None:
        self.open: dict[Watched, None] = {}
        self.ended: deque[Watched] = deque(maxlen=KEPT)
        self.counts: Counter[tuple[str, str, int, str]] = Counter()
        self.seconds: defaultdict[str, Distribution] = defaultdict(Distribution)
        self.ttft: defaultdict[str, Distribution] = defaultdict(Distribution)

    def begin(self, request: Watched) -> None:
        self.open[request] = None

    def end(self, request: Watched) -> None:
        del self.open[request]
        route = request.route or "none"
        method = request.method if request.method in METHODS else "other"  # a client may send any word
        self.counts[method, route, request.status or 0, request.key or ""] += 1
        self.seconds[route].add(request.seconds)
        if request.ttft is not None:
            self.ttft[route].add(request.ttft)
        if request.prompts:
            self.ended.append(request)

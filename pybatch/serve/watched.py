"""One HTTP request, as far as it is watched."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from copy import copy
from typing import Any

from pybatch.engine import RequestOutput
from pybatch.engine.metrics import RequestMetrics
from pybatch.engine.pooling_params import Params


class Watched:
    """began: by time.perf_counter(). route: None where the server has none for the path. status: None until the
    response begins. key: the name of the API key. prompts: the ids, in the engine, of those that are to be answered.
    reasons: of the samples that have ended. trace_headers: W3C's, which say of what it is a part.
    """

    __slots__ = (
        "_outputs",
        "arrived",
        "began",
        "ended",
        "gone",
        "id",
        "key",
        "method",
        "model",
        "params",
        "path",
        "prompts",
        "reasons",
        "route",
        "status",
        "trace_headers",
    )

    def __init__(self, id: str, method: str, path: str, trace_headers: dict[str, str] | None = None) -> None:
        self.id, self.method, self.path = id, method, path
        self.trace_headers = trace_headers or {}
        self.arrived, self.began = time.time(), time.perf_counter()
        self.ended: float | None = None
        self.gone = False  # the client, before the response had ended
        self.route: str | None = None
        self.status: int | None = None
        self.key: str | None = None
        self.model: str | None = None
        self.params: Params | None = None
        self.prompts: list[str] = []
        self.reasons: list[str] = []
        self._outputs: dict[int, RequestMetrics] = {}

    def asks(self, prompts: list[str], params: Params, model: str) -> None:
        self.prompts, self.params, self.model = prompts, params, model

    def takes(self, number: int, output: RequestOutput) -> None:
        """An output of the prompt of that number."""
        self._outputs[number] = output.metrics
        if output.finished:
            self.reasons += [str(sample.finish_reason) for sample in output.outputs]

    @property
    def seconds(self) -> float:
        """Since it came, until it ended."""
        return (time.perf_counter() if self.ended is None else self.ended) - self.began

    @property
    def prompt_tokens(self) -> int:
        return sum(each.num_prompt_tokens for each in self._outputs.values())

    @property
    def cached_tokens(self) -> int:
        return sum(each.num_cached_tokens for each in self._outputs.values())

    @property
    def output_tokens(self) -> int:
        return sum(each.num_output_tokens for each in self._outputs.values())

    @property
    def ttft(self) -> float | None:
        """Seconds from the arrival of the first prompt's request to its first token."""
        return min((each.ttft for each in self._outputs.values() if each.ttft is not None), default=None)

    @property
    def tpot(self) -> float | None:
        """The mean of its prompts', once they have ended."""
        known = [each.tpot for each in self._outputs.values() if each.tpot is not None]
        return sum(known) / len(known) if known else None

    @property
    def state(self) -> str:
        if self.ended is not None:
            return "gone" if self.gone else "finished"
        begun = any(each.first_scheduled_time is not None for each in self._outputs.values())
        return "running" if begun else "waiting"

    def looks(self, metrics_of: Callable[[str], RequestMetrics | None]) -> Watched:
        """A copy that knows how far its prompts have come, whether or not there is an output of them."""
        seen = copy(self)
        seen._outputs = self._outputs.copy()
        for number, id in enumerate(self.prompts):
            metrics = metrics_of(id)
            if metrics is not None:
                seen._outputs[number] = metrics
        return seen

    def facts(self) -> dict[str, Any]:
        """As JSON values, of now."""
        return {
            "id": self.id,
            "method": self.method,
            "route": self.route or self.path,
            "model": self.model,
            "key": self.key,
            "state": self.state,
            "status": self.status,
            "arrived": round(self.arrived, 3),
            "seconds": round(self.seconds, 4),
            "prompts": len(self.prompts),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "ttft": rounded(self.ttft),
            "tpot": rounded(self.tpot),
            "finish_reasons": self.reasons,
        }


def rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


CURRENT: ContextVar[Watched | None] = ContextVar("watched", default=None)
"""The HTTP request that the running task answers."""

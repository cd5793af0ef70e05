"""A request on its way to an engine's thread and back."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Protocol

from pybatch.api.inputs import Prompt
from pybatch.api.session import empty_output
from pybatch.engine import RequestOutput, RequestOutputKind
from pybatch.engine.pooling_params import Params
from pybatch.engine.scheduling.fair_queue import PATIENCE
from pybatch.engine.standing import Standing


class Outbox(Protocol):
    """Where a request's outputs go."""

    def put(self, item: RequestOutput | Exception) -> bool:
        """Called on the engine's thread, so it may not wait. An exception is the last item. Returns False if nobody can
        get the item any more: the request is aborted then."""


class Submission:
    """A request on its way: from the prompt's arrival to its last output. prompt: until it is tokenised. index: as
    Session.add's."""

    __slots__ = (
        "arrival_time",
        "cancelled",
        "engine_id",
        "index",
        "newest",
        "outbox",
        "params",
        "prompt",
        "queued",
        "request_id",
        "size",
        "standing",
    )

    def __init__(
        self,
        params: Params,
        request_id: str,
        outbox: Outbox,
        standing: Standing,
        *,
        prompt: Prompt | None = None,
        index: int | None = None,
    ) -> None:
        self.prompt = prompt
        self.size = 1 + (len(prompt) if isinstance(prompt, str) else 0)  # of the work to tokenise it
        self.queued = 0
        self.params, self.request_id, self.outbox = params, request_id, outbox
        self.standing, self.index = standing, index
        self.arrival_time = time.perf_counter()
        self.cancelled = False
        self.engine_id: str | None = None
        self.newest: RequestOutput | None = None

    @property
    def priority(self) -> int:
        return self.standing.priority

    @property
    def user(self) -> str | None:
        return self.standing.user

    @property
    def urgent(self) -> bool:
        return self.standing.ttft_target is not None

    @property
    def deadline(self) -> float:
        target = self.standing.ttft_target
        return self.arrival_time + (PATIENCE if target is None else target)

    def aborted(self) -> RequestOutput:
        """The last output where it is aborted: everything so far, or an empty delta."""
        newest = self.newest
        if newest is None:
            return empty_output(self.request_id, "abort")
        nothing: dict[str, Any] = {}
        if getattr(self.params, "output_kind", None) is RequestOutputKind.DELTA:
            nothing = {"text": "", "token_ids": [], "logprobs": None}
        outputs = [replace(each, finish_reason=each.finish_reason or "abort", **nothing) for each in newest.outputs]
        return replace(newest, outputs=outputs, finished=True)

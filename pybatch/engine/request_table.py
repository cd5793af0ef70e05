"""The requests of an engine that have not finished, and the outputs that are ready to be taken."""

from __future__ import annotations

import time
from dataclasses import replace

from pybatch.engine.adapters import Adapters
from pybatch.engine.metrics import EngineMetrics, RequestMetrics
from pybatch.engine.outputs import CompletionOutput, RequestOutput
from pybatch.engine.sampling_params import RequestOutputKind
from pybatch.engine.scheduling.room import Room
from pybatch.engine.scheduling.sequence import Request, Sequence


class RequestTable:
    """room, adapters: a request that ends gives back what it holds of them."""

    def __init__(self, room: Room, adapters: Adapters) -> None:
        self.unfinished: dict[str, Request] = {}  # by their ids
        self.num_bounded = 0  # of them
        self.began_again = False  # all unfinished requests, and none has ended since
        self._room, self._adapters = room, adapters
        self._ready: list[RequestOutput] = []

    def __len__(self) -> int:
        return len(self.unfinished)

    def expect_new(self, request: Request) -> None:
        if request.request_id in self.unfinished:
            raise ValueError(f"request_id: {request.request_id!r} is in use by a request that has not finished")

    def add(self, request: Request) -> None:
        self.unfinished[request.request_id] = request
        self.num_bounded += request.bounded

    def pop(self, request_id: str) -> Request | None:
        """Forgets a request, which is then to be released. None if it is not known, or has finished."""
        request = self.unfinished.pop(request_id, None)
        if request is not None:
            self.num_bounded -= request.bounded
        return request

    def release(self, request: Request) -> None:
        """It holds nothing more: no room for a prefix that it has not pinned, no adapter, no sequences. These refer to
        it: without the cycle all are freed now."""
        if request.pin is not None and not request.pin.blocks:
            self._room.remove(request.pin)
        self._adapters.leave(request)
        request.sequences.clear()

    def discard_all(self) -> None:
        """Without a word of them, after a fault of the machine."""
        for request in self.unfinished.values():
            self.release(request)
        self.unfinished.clear()
        self.num_bounded = 0

    @property
    def has_ready(self) -> bool:
        return bool(self._ready)

    def take_ready(self) -> list[RequestOutput]:
        ready, self._ready = self._ready, []
        return ready

    def metrics_of(self, request_id: str) -> RequestMetrics | None:
        """With the tokens that it has so far. Of any thread."""
        request = self.unfinished.get(request_id)
        if request is None:
            return None
        return replace(request.metrics, num_output_tokens=sum([each.num_output for each in request.sequences]))

    def tell(self, request: Request, counts: EngineMetrics) -> None:
        """Makes an output of what there is to tell of a request. One that has finished is counted and forgotten."""
        metrics = request.metrics
        metrics.num_output_tokens = sum(sequence.num_output for sequence in request.sequences)
        finished = request.finished
        if finished:
            metrics.finished_time = time.perf_counter()
            counts.finished(
                metrics,
                failed=request.error is not None,
                reason=min([str(sequence.finish_reason) for sequence in request.sequences]),
                max_tokens=request.max_total_tokens - metrics.num_prompt_tokens,
                standing=request.standing,
            )
            self.began_again = False
            self.pop(request.request_id)
        self._ready.append(_output(request, finished))
        if finished:
            self.release(request)


def _output(request: Request, finished: bool) -> RequestOutput:
    delta = request.stream and request.params.output_kind is RequestOutputKind.DELTA
    first = request.delivered[0] == (0, 0)
    return RequestOutput(
        request_id=request.request_id,
        prompt=request.prompt,
        prompt_token_ids=request.prompt_token_ids,
        prompt_logprobs=request.prompt_logprobs if first else None,
        outputs=[_completion(sequence, delta) for sequence in request.sequences],
        finished=finished,
        metrics=request.metrics,
        error=request.error,
        num_cached_tokens=request.metrics.num_cached_tokens,
        error_code=None if request.error is None else request.error_code,
        pooled=None if request.pooled is None else request.pooled.vector,
    )


def _completion(sequence: Sequence, delta: bool) -> CompletionOutput:
    """delta: only what is new since the last output."""
    request = sequence.request
    wants_logprobs = request.params.logprobs is not None
    tokens, characters = request.delivered[sequence.index]
    if delta:
        request.delivered[sequence.index] = sequence.num_output, len(sequence.text)
    return CompletionOutput(
        index=sequence.index,
        text=sequence.text[characters:],
        token_ids=sequence.output[tokens:].tolist(),
        cumulative_logprob=sequence.cumulative_logprob if wants_logprobs or request.beams else None,
        logprobs=sequence.logprobs[tokens:] if wants_logprobs else None,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
    )
